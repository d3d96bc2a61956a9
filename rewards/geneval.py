"""`geneval`: whether the objects that the row asks for are in the image, by GenEval's rules. Higher is better, 0 or 1.

Source: GenEval, Ghosh et al. 2023 (arXiv 2310.11513), without mmdet. Rules and thresholds are those of its evaluation
script (github.com/djghosh13/geneval at af4902f); the detector has the architecture and the training data of the
original's, but other weights. Not calibrated against the original yet: figures may differ from published ones.

It reads the columns `include` and `exclude`, with which `python recipes/benchmark.py geneval SOURCE TARGET` writes
GenEval's prompts. An object counts from a confidence above 0.3, in a row with `exclude` (in GenEval: its tag counting)
above 0.9; at most 16 of a class. Its colour is the likeliest of ten by OpenCLIP, which sees it alone on grey. Where it
is follows from the boxes. GenEval's total is the mean of the means of its six tags.

Models: facebook/mask2former-swin-small-coco-instance (69M parameters, 0.3 GB; its authors' weights are under CC BY-NC
4.0: not for commercial use), or another Mask2Former, a MaskFormer or an object detector of transformers with COCO's
classes, such as facebook/detr-resnet-50 (Apache-2.0; colours then include the background in the box); and OpenAI's
ViT-L/14 (MIT, 428M parameters, 0.9 GB in bfloat16, 1.7 GB in float32), which it shares with `clip`.
"""

import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize
from torchvision.ops import masks_to_boxes
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, AutoModelForUniversalSegmentation

from brushup.common import default_device
from brushup.rewards.geneval_rules import Detection, is_right, objects_by_class
from brushup.rewards.open_clip_backbone import open_clip_backbone


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOR_PROMPTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GENEVAL_NAMES = {  # of COCO's classes, for the names that models of transformers have
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "tvmonitor": "tv",
}
MOST_INSTANCES = 100  # of an image, in all classes
SEGMENTATION_SIZE = {"shortest_edge": 800, "longest_edge": 1333}  # as the original enlarges images


class GenEval:
    """A score of images against `include` and `exclude` of their prompts' rows.

    Args:
        model_name: a Mask2Former, a MaskFormer or an object detector of transformers: Hub id or folder.
        confidence: that objects must exceed, 0..1.
        counting_confidence: the same, in a row with `exclude`.
        clip_model, clip_pretrained, precision: of the model for colours, as for `OpenClipReward`.
        device: default cuda, else mps, else cpu.

    Raises:
        ValueError: the model is of another kind.
    """

    def __init__(
        self,
        model_name: str = "facebook/mask2former-swin-small-coco-instance",
        confidence: float = 0.3,
        counting_confidence: float = 0.9,
        clip_model: str = "ViT-L-14",
        clip_pretrained: str | None = "openai",
        precision: str | None = None,
        device: str | None = None,
    ):
        self.device = device or default_device()
        self.model_name, self.confidence, self.counting_confidence = model_name, confidence, counting_confidence
        config = AutoConfig.from_pretrained(model_name)
        self.has_masks = config.model_type in ("mask2former", "maskformer")
        finds_boxes = any(name.endswith("ForObjectDetection") for name in config.architectures or [])
        if not self.has_masks and not finds_boxes:
            raise ValueError(
                f"reward_kwargs of 'geneval': {model_name} is a {config.model_type} ({config.architectures}); name a "
                "Mask2Former, a MaskFormer or an object detector"
            )
        automatic = AutoModelForUniversalSegmentation if self.has_masks else AutoModelForObjectDetection
        self.model = automatic.from_pretrained(model_name).to(self.device).eval()
        size = {"size": SEGMENTATION_SIZE} if self.has_masks else {}
        self.processor = AutoImageProcessor.from_pretrained(model_name, **size)
        self.names = {number: GENEVAL_NAMES.get(name, name) for number, name in config.id2label.items()}
        self.clip = open_clip_backbone(clip_model, clip_pretrained, precision, self.device)
        self._color_features: dict[str, torch.Tensor] = {}

    def __call__(
        self,
        images: list[Image.Image],
        user_prompts: list[str],
        prompts: list[str],
        include: list[list[dict] | None],
        exclude: list[list[dict] | None],
    ) -> list[float | None]:
        """Return 1.0 for an image that has all that its row asks for, else 0.0; `prompts` (the rewrites) do not count.

        Args:
            images: judged one by one.
            user_prompts: for the errors.
            prompts: the rewrites.
            include, exclude: the columns of each image's row, as for `is_right`.

        Raises:
            ValueError: a row has no `include`, or asks for a class that the model does not know.
        """
        scores = []
        for image, user_prompt, wanted, unwanted in zip(images, user_prompts, include, exclude, strict=True):
            self._check(user_prompt, wanted, unwanted)
            image = image.convert("RGB")
            confidence = self.counting_confidence if unwanted else self.confidence
            objects = objects_by_class(self.detect(image, confidence), confidence)
            right = is_right(objects, wanted, unwanted, lambda found, image=image: self.colors_of(image, found))
            scores.append(float(right))
        return scores

    def _check(self, user_prompt: str, include: list[dict] | None, exclude: list[dict] | None) -> None:
        if not include:
            raise ValueError(
                f"{user_prompt!r}: the row has no `include`, by which 'geneval' judges; `python recipes/benchmark.py "
                "geneval SOURCE TARGET` makes a prompt file with this column"
            )
        unknown = {entry["class"] for entry in [*include, *(exclude or [])]} - {*self.names.values()}
        if unknown:
            raise ValueError(
                f"{user_prompt!r}: {self.model_name} knows no class {unknown.pop()!r}; it knows "
                f"{', '.join(self.names.values())}"
            )

    @torch.inference_mode()
    def detect(self, image: Image.Image, confidence: float) -> list[Detection]:
        """Return the objects in the RGB image above the confidence."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        outputs, size = self.model(**inputs), (image.height, image.width)
        if self.has_masks:
            logits = outputs.class_queries_logits[0], outputs.masks_queries_logits[0]
            found = instances(*logits, inputs["pixel_values"].shape[-2:], size, confidence)
        else:
            (found,) = self.processor.post_process_object_detection(outputs, confidence, target_sizes=[size])
        masks = found["masks"].cpu().numpy() if self.has_masks else [None] * len(found["scores"])
        rows = zip(*(found[key].tolist() for key in ("labels", "scores", "boxes")), masks, strict=True)
        return [Detection(self.names[label], score, tuple(box), mask) for label, score, box, mask in rows]

    def colors_of(self, image: Image.Image, found: list[Detection]) -> list[str]:
        """Return the likeliest of `COLORS` for each of the objects, which are of one class."""
        grey = Image.new("RGB", image.size, "#999")
        crops = []
        for detection in found:
            alone = image if detection.mask is None else Image.composite(image, grey, Image.fromarray(detection.mask))
            left, top, right, bottom = map(round, detection.box)
            crops.append(alone.crop((left, top, max(right, left + 1), max(bottom, top + 1))))
        cosines = self.clip.image_features(crops, len(crops)) @ self._features_of_colors(found[0].name).T
        return [COLORS[index] for index in cosines.argmax(-1).tolist()]

    def _features_of_colors(self, name: str) -> torch.Tensor:
        """Return a feature of length one for each of `COLORS`, (10, width): the mean over `COLOR_PROMPTS`."""
        if name not in self._color_features:
            texts = [prompt.format(color=color, name=name) for color in COLORS for prompt in COLOR_PROMPTS]
            features = self.clip.text_features(texts, len(texts))
            means = features.unflatten(0, (len(COLORS), len(COLOR_PROMPTS))).mean(1)
            self._color_features[name] = normalize(means, dim=-1)
        return self._color_features[name]


def instances(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, input_size: tuple, size: tuple, confidence: float
) -> dict[str, torch.Tensor]:
    """Return the instances that a Mask2Former's queries stand for, as mmdet makes them of its outputs.

    transformers' own `post_process_instance_segmentation` rounds all masks to 384 x 384 pixels.

    Args:
        class_logits: (queries, classes + 1), the last one: no object.
        mask_logits: (queries, height, width), smaller than the image.
        input_size: height and width of the model's input.
        size: height and width of the image.
        confidence: that an instance must exceed: the probability of its class times the mean of its mask.

    Returns:
        `labels` (n), `scores` (n), `boxes` (n, 4) and `masks` (n, height, width), bool.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    top = probabilities.flatten().topk(min(MOST_INSTANCES, probabilities.numel()))
    likely = top.values > confidence  # the masks of the others need not be enlarged: a mask only lowers the score
    scores, indices = top.values[likely], top.indices[likely]
    queries, labels = indices // probabilities.shape[1], indices % probabilities.shape[1]
    logits = mask_logits[queries, None]
    if len(scores):
        for shape in (input_size, size):
            logits = interpolate(logits, tuple(shape), mode="bilinear", align_corners=False)
    masks = logits[:, 0] > 0
    pixels = masks.flatten(1).sum(1)
    scores = scores * (logits[:, 0].sigmoid() * masks).flatten(1).sum(1) / (pixels + 1e-6)
    kept = (scores > confidence) & (pixels > 0)
    boxes = masks_to_boxes(masks[kept])
    boxes[:, 2:] += 1  # the edge behind the last pixel
    return {"labels": labels[kept], "scores": scores[kept], "boxes": boxes, "masks": masks[kept]}
