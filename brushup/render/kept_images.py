"""Kept images: those of an evaluation in a folder, to be scored by other rewards without a generator."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image

from brushup.config import RenderConfig
from brushup.masking import masked
from brushup.render.job import RenderJob, RenderResult, Worker
from brushup.render.renderer import PromptAndSeed, Rendered, RenderedImage, RenderFailure
from brushup.render.worker import LocalWorker, load_image_rewards
from brushup.rewards.registry import RewardSpec


INDEX = "index.json"


def image_file(prompt: str, seed: int) -> str:
    """Return the name of the image's file, PNG: lossless."""
    return hashlib.blake2b(f"{seed}|{prompt}".encode(), digest_size=12).hexdigest() + ".png"


class KeepingWorker:
    """A worker that writes each image into a folder, too; the ranks share the folder.

    Args:
        worker: renders and scores.
        folder: of the images and their index; it is made.
        render: the settings that the images are rendered with.
    """

    def __init__(self, worker: Worker, folder: Path, render: RenderConfig):
        self._worker, self._folder = worker, folder
        self._index = {"settings": masked(render.image_settings()), "token_limits": worker.token_limits, "images": []}
        self._tokens: dict[RenderJob, dict[str, int]] = {}  # of images that are not in the index yet
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keep")
        folder.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return str(self._worker)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def submit(self, jobs: Sequence[RenderJob], return_images: bool = True) -> "Future[list[RenderResult]]":
        """Start to render, to score and to write the images, and return at once."""
        return self._thread.submit(self._keep, jobs, self._worker.submit(jobs, return_images=True))

    def _keep(self, jobs: Sequence[RenderJob], future: "Future[list[RenderResult]]") -> list[RenderResult]:
        results = future.result()
        for job, result in dict(zip(jobs, results, strict=True)).items():
            if result.image:
                result.image.save(self._folder / image_file(job.prompt, job.seed))
                self._tokens[job] = result.tokens
        return results

    def file_under(self, arm: str) -> None:
        """Write the index, with the images since the last call as this arm's; all ranks call it together."""
        rows = [
            {
                **{"arm": arm, "prompt": job.prompt, "user_prompt": job.user_prompt, "seed": job.seed},
                **{"file": image_file(job.prompt, job.seed), "tokens": tokens},
            }
            for job, tokens in self._tokens.items()
        ]
        self._tokens.clear()
        self._index["images"] += gather_object(rows)
        if PartialState().is_main_process:
            text = json.dumps(self._index, indent=1, ensure_ascii=False)
            (self._folder / INDEX).write_text(text, encoding="utf-8")


class KeptImages:
    """A renderer that reads the images of a `KeepingWorker` instead of rendering them.

    Args:
        folder: of the images.
        render: the settings that they were rendered with.

    Raises:
        FileNotFoundError: there is no index in the folder.
        ValueError: they were rendered with other settings.
    """

    images_drawn = 0

    def __init__(self, folder: Path, render: RenderConfig):
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(
                f"images_from: {folder / INDEX} is not there: give the folder evaluation_images of an evaluation with "
                "--keep_images true"
            )
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(masked(render.image_settings())))
        differing = [name for name, value in wanted.items() if index["settings"].get(name) != value]
        if differing:
            kept = ", ".join(f"{name}: {index['settings'].get(name)!r}" for name in differing)
            raise ValueError(f"images_from: the images of {folder} were rendered with other settings ({kept})")
        self.generator, self.device = f"{render.generator}, images kept in {folder}", render.device
        self.token_limits: dict[str, int] = index["token_limits"]
        self._folder = folder
        self._tokens = {row["prompt"]: row["tokens"] for row in index["images"]}

    def count_tokens(self, prompts: Sequence[str]) -> list[dict[str, int]]:
        """Return the length of each prompt for each tokenizer of the generator; empty for an unknown prompt."""
        return [self._tokens.get(prompt, {}) for prompt in prompts]

    def draw(self, jobs: Sequence[PromptAndSeed]) -> list[Rendered]:
        """Return the image of each (prompt, seed), or a `RenderFailure` where none was kept."""
        return [self._read(prompt, seed) for prompt, seed in jobs]

    def _read(self, prompt: str, seed: int) -> Rendered:
        try:
            with Image.open(self._folder / image_file(prompt, seed)) as image:
                return RenderedImage.of(image, self.device)
        except OSError as error:
            return RenderFailure(
                f"{self._folder} has no image of the prompt {prompt!r} at seed {seed} ({error}): evaluate the same "
                "policies with the settings that the images were kept with, above all seed, best_of and "
                "validation_images_per_prompt"
            )


def load_kept_images(folder: Path, render: RenderConfig, rewards: Sequence[RewardSpec]) -> LocalWorker:
    """Return a worker with the images in the folder, and with the image rewards among `rewards`.

    Raises:
        FileNotFoundError, ValueError: as `KeptImages`.
    """
    return LocalWorker(KeptImages(folder, render), load_image_rewards(render, rewards))
