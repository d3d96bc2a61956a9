"""The OpenCLIP model behind `clip`, `hpsv2`, `siglip` and `aesthetic`: rewards with equal settings share it."""

import hashlib
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import torch
from PIL import Image
from torchvision.transforms import Normalize
from torchvision.transforms.functional import resize


Images = list[Image.Image] | list[torch.Tensor]
"""PIL images, or tensors: uint8, (3, height, width), on any one device."""


class OpenClipBackbone:
    """An OpenCLIP model with its picture transform and tokenizer. Get it from `open_clip_backbone`, which shares it.

    It keeps the features (not the pictures) of the last list of pictures, so that the next reward that is shown the
    same list does not encode it again.

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
        self._last: tuple[list, torch.Tensor | None] = ([], None)

    @torch.inference_mode()
    def image_features(self, images: Images, batch_size: int) -> torch.Tensor:
        """Features of length one, (len(images), width), float32."""
        identities = [identity(image) for image in images]
        seen, features = self._last
        if identities != seen or features is None:
            features = normalized(images, self._encode_images, batch_size)
            self._last = (identities, features)
        return features

    @torch.inference_mode()
    def text_features(self, texts: list[str], batch_size: int) -> torch.Tensor:
        """Features of length one, (len(texts), width), float32; equal texts are encoded once."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        features = normalized(list(rows), self._encode_texts, batch_size)
        return features[[rows[text] for text in texts]]

    @torch.inference_mode()
    def cosines(self, images: Images, texts: list[str], batch_size: int) -> torch.Tensor:
        """The cosine, -1..1, of each picture and its text, (len(images),)."""
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
        """What `preprocess` does to PIL images, for uint8 pixels, (count, 3, height, width), on the model's device."""
        pixels = pixels.to(self.device)
        for step in self.preprocess.transforms:
            if isinstance(step, Normalize):
                pixels = pixels.float() / 255
            if hasattr(step, "longest"):  # OpenCLIP's `ResizeKeepRatio`, which takes PIL images only
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
    """The backbone of these settings: the one in use if there is one, else loaded; it goes with its last reward.

    Args:
        model_name: an OpenCLIP architecture ("ViT-L-14"), or `hf-hub:org/name`, or `local-dir:path/to/folder`.
        pretrained: for an architecture: a tag of OpenCLIP ("openai") or a checkpoint file.
        precision: OpenCLIP's: "fp32", "fp16", "bf16", "pure_bf16", ...; default: pure_bf16 (all weights, so that it
            does for text encoders of Hugging Face, too) on an NVIDIA GPU, else fp32.
        device: where the model is.
        resize_mode: how pictures get the model's size: "shortest" (crop), "longest" (pad), "squash"; default: its own.
    """
    precision = precision or ("pure_bf16" if torch.device(device).type == "cuda" else "fp32")
    settings = (model_name, pretrained, precision, str(device), resize_mode)
    backbone = _backbones.get(settings)
    if backbone is None:
        backbone = _backbones[settings] = OpenClipBackbone(*settings)
    return backbone


def identity(image: Image.Image | torch.Tensor) -> bytes | tuple:
    """Equal for one picture that was not changed meanwhile (two PIL images of equal pixels, too), else never.

    Not id(): a picture may be changed, or its id reused. Pixels of tensors are not looked at: they may be on a GPU.
    """
    if isinstance(image, Image.Image):
        return hashlib.blake2b(f"{image.mode} {image.size}".encode() + image.convert("RGB").tobytes()).digest()
    version = object() if image.is_inference() else image._version  # those of inference mode do not tell of changes
    return Same(image), version


class Same(weakref.ref):
    """Equal to another one of the very same object while that lives; a weakref's own == would compare all pixels."""

    def __eq__(self, other: "Same") -> bool:
        return self() is other() is not None

    __hash__ = None


def normalized(items: list, encode: Callable[[list], torch.Tensor], batch_size: int) -> torch.Tensor:
    """What `encode` makes of the items, in batches, each row of length one: (len(items), width), float32."""
    starts = range(0, len(items), batch_size)
    features = torch.cat([encode(items[start : start + batch_size]) for start in starts]).float()
    return torch.nn.functional.normalize(features, dim=-1)
