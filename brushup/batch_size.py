"""How many pictures to draw at once, found while drawing."""

import time

import torch


START = 4
LARGEST = 64  # on CUDA; elsewhere half as many
BATCHES = 3  # of each size; the fastest counts, since the first is slower and other work may come between
WORTHWHILE = 1.05  # what twice the size must gain in pictures a second


class BatchSizeSearch:
    """Doubles the batch size while that pays and fits, on the pictures that are drawn anyway.

    Args:
        device: what draws. On CUDA a size is tried only if a batch of it should leave a tenth of the memory that this
            process may still take.

    Attributes:
        size: how many to draw at once now.
        done: whether that is the answer.
    """

    def __init__(self, device: torch.device):
        self.size = START
        self.done = False
        self._device = device
        self._largest = LARGEST if device.type == "cuda" else LARGEST // 2
        self._rates: list[float] = []
        self._best = 0.0

    def start(self) -> None:
        """A batch begins."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)  # peaks of what is reserved hardly change by that
            self._allocated = torch.cuda.memory_allocated(self._device)
        self._began = time.perf_counter()

    def stop(self, pictures: int) -> None:
        """The batch of so many pictures, all that the size allows, is drawn."""
        self._rates.append(pictures / (time.perf_counter() - self._began))
        if len(self._rates) < BATCHES:
            return
        rate = max(self._rates)
        self._rates.clear()
        if rate < WORTHWHILE * self._best:
            self.size //= 2
            self.done = True
        elif 2 * self.size > self._largest or not self._twice_as_many_fit():
            self.done = True
        else:
            self._best = rate
            self.size *= 2

    def _twice_as_many_fit(self) -> bool:
        if self._device.type != "cuda":
            return True
        needed = torch.cuda.max_memory_allocated(self._device) - self._allocated
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = torch.cuda.get_per_process_memory_fraction(self._device) * total
        room = min(free + torch.cuda.memory_reserved(self._device), allowed) - self._allocated
        return 2 * needed <= 0.9 * room
