"""The OpenCLIP model behind `clip`, `diversity`, `aesthetic`, `siglip` and `hpsv2`; equal settings share one model."""

import weakref
from collections.abc import Callable
from types import SimpleNamespace

import torch
from PIL import Image
from torchvision.transforms import Normalize
from torchvision.transforms.functional import resize

from brushup.common import default_device


PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")
Images = list[Image.Image] | list[torch.Tensor]
"""PIL images, or tensors: uint8, (3, height, width), all on one device."""


class OpenClipReward:
    """The part that all rewards on an OpenCLIP model share: its settings, and the model itself.

    Args:
        model_name: an OpenCLIP architecture ("ViT-L-14"), or `hf-hub:org/name`, or `local-dir:path/to/folder`.
        pretrained: for an architecture: a tag of OpenCLIP ("openai") or a checkpoint file.
        precision: OpenCLIP's: "fp32", "fp16", "bf16", "pure_bf16"; default: pure_bf16 on an NVIDIA GPU, else fp32.
        device: default cuda, else mps, else cpu.
        batch_size: images encoded at once.

    Raises:
        RuntimeError: OpenCLIP finds no weights (it would go on with random ones).
        ValueError: the precision is none of `PRECISIONS`.
    """

    takes_pixels = True  # tensors, as the worker has them: the way through PIL would cost time
    resize_mode: str | None = None

    def __init__(
        self,
        model_name: str = "ViT-L-14",
        pretrained: str | None = "openai",
        precision: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        self.batch_size = batch_size
        self.backbone = open_clip_backbone(
            model_name, pretrained, precision, device or default_device(), self.resize_mode
        )


class OpenClipBackbone:
    """An OpenCLIP model with its image transform and tokenizer. Get it from `open_clip_backbone`, which shares it.

    It keeps the features of the last list of images: the worker calls every reward with the same list, so the second
    reward on this model need not encode the images again.

    Raises:
        RuntimeError: OpenCLIP finds no weights (it would go on with random ones).
    """

    def __init__(self, model_name: str, pretrained: str | None, precision: str, device: str, resize_mode: str | None):
        import open_clip

        self.device = device
        has_schema = ":" in model_name
        self.model, self.preprocess = open_clip.create_model_from_pretrained(
            model_name,
            pretrained=None if has_schema else pretrained,
            precision=precision,
            device=device,
            image_resize_mode=resize_mode,
        )
        self.model.eval()
        self.dtype = open_clip.get_input_dtype(precision)
        self.tokenizer = open_clip.get_tokenizer(model_name)
        self._last_images: Images | None = None
        self._last_features: torch.Tensor | None = None

    @torch.inference_mode()
    def image_features(self, images: Images, batch_size: int) -> torch.Tensor:
        """Return features of length one, (len(images), width), float32.

        A list that was passed before must not be changed: its features are found by the list object.
        """
        if images is not self._last_images:
            self._last_features = normalized(images, self._encode_images, batch_size)
            self._last_images = images
        return self._last_features

    @torch.inference_mode()
    def text_features(self, texts: list[str], batch_size: int) -> torch.Tensor:
        """Return features of length one, (len(texts), width), float32; equal texts are encoded once."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        features = normalized(list(rows), self._encode_texts, batch_size)
        return features[[rows[text] for text in texts]]

    @torch.inference_mode()
    def cosines(self, images: Images, texts: list[str], batch_size: int) -> torch.Tensor:
        """Return the cosine, -1..1, of each image and its text, (len(images),)."""
        return (self.image_features(images, batch_size) * self.text_features(texts, batch_size)).sum(-1)

    def _encode_images(self, images: Images) -> torch.Tensor:
        if not isinstance(images[0], torch.Tensor):
            inputs = torch.stack([self.preprocess(image) for image in images])
        elif len({image.shape for image in images}) == 1:
            inputs = self._preprocess_pixels(torch.stack(images))
        else:
            inputs = torch.cat([self._preprocess_pixels(image[None]) for image in images])
        return self.model.encode_image(inputs.to(self.device, self.dtype))

    def _preprocess_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Transform uint8 pixels, (count, 3, height, width), on the model's device as `preprocess` does PIL images."""
        from open_clip.transform import ResizeKeepRatio

        pixels = pixels.to(self.device)
        for step in self.preprocess.transforms:
            if isinstance(step, Normalize):
                pixels = pixels.float() / 255
            if isinstance(step, ResizeKeepRatio):  # it takes PIL images only
                like_pil = SimpleNamespace(size=(pixels.shape[-1], pixels.shape[-2]))
                pixels = resize(pixels, step.get_params(like_pil, step.size, step.longest), step.interpolation)
            else:
                pixels = step(pixels)
        return pixels

    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))


_backbones: "weakref.WeakValueDictionary[tuple, OpenClipBackbone]" = weakref.WeakValueDictionary()


def open_clip_backbone(
    model_name: str, pretrained: str | None, precision: str | None, device: str, resize_mode: str | None = None
) -> OpenClipBackbone:
    """Return the backbone of these settings: the one in use, else a new one. It is freed with its last reward.

    Args:
        model_name, pretrained: as for `OpenClipReward`.
        precision: default pure_bf16 on an NVIDIA GPU (all weights, so that text encoders of Hugging Face are in
            bfloat16, too), else fp32.
        device: of the model, e.g. "cuda".
        resize_mode: how images get the model's size: "shortest" (crop), "longest" (pad), "squash"; default: the
            model's own.
    """
    precision = precision or ("pure_bf16" if torch.device(device).type == "cuda" else "fp32")
    if precision not in PRECISIONS:  # OpenCLIP takes any, and loads float32
        raise ValueError(f"precision: {precision!r} is none of {', '.join(PRECISIONS)}")
    settings = (model_name, pretrained, precision, str(device), resize_mode)
    backbone = _backbones.get(settings)
    if backbone is None:
        backbone = _backbones[settings] = OpenClipBackbone(*settings)
    return backbone


def normalized(items: list, encode: Callable[[list], torch.Tensor], batch_size: int) -> torch.Tensor:
    """Encode the items in batches, and return the rows scaled to length one: (len(items), width), float32."""
    starts = range(0, len(items), batch_size)
    features = torch.cat([encode(items[start : start + batch_size]) for start in starts]).float()
    return torch.nn.functional.normalize(features, dim=-1)
