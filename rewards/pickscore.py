"""`pickscore`: which image people pick for the prompt, by PickScore. Higher is better, in practice 0.17 to 0.25.

Source: Pick-a-Pic, Kirstain et al. 2023 (arXiv 2305.01569), as its model card computes it (the cosine times the
learnt scale, about 100), divided by 100, so that its size is like that of the other rewards; published figures are
these times 100. It mixes likeness to the prompt with looks. English only, 77 tokens.
Model: yuvalkirstain/PickScore_v1, a CLIP ViT-H/14 trained on half a million choices of users (986M parameters, 2 GB
in bfloat16, 4 GB in float32; its authors state no licence).
"""

import torch

from brushup.common import default_device
from brushup.rewards.open_clip_backbone import Images, normalized


class PickScore:
    """A score of images against the user's original prompt.

    Args:
        model_name: a `CLIPModel` of transformers, Hub id or folder.
        processor: its `CLIPProcessor`, Hub id or folder.
        dtype: "float32", "float16", "bfloat16"; default: bfloat16 on an NVIDIA GPU, else float32.
        device: default cuda, else mps, else cpu.
        batch_size: images encoded at once.

    Raises:
        OSError: there is no such model or processor.
        ValueError: the checkpoint lacks weights of the model (transformers would go on with random ones).
    """

    takes_pixels = True  # tensors, as the worker has them: the way through PIL would cost time

    def __init__(
        self,
        model_name: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        from transformers import CLIPModel, CLIPProcessor

        self.device = device or default_device()
        self.batch_size = batch_size
        dtype = dtype or ("bfloat16" if torch.device(self.device).type == "cuda" else "float32")
        try:
            model, loading = CLIPModel.from_pretrained(model_name, dtype="float32", output_loading_info=True)
            self.processor = CLIPProcessor.from_pretrained(processor)
        except OSError as error:
            raise OSError(
                f"reward 'pickscore' does not load from {model_name} and {processor}: {error}\nreward_kwargs: "
                "{pickscore: {model_name: ..., processor: ...}} names other ones, by Hub id or folder"
            ) from error
        if missing := loading["missing_keys"]:
            raise ValueError(
                f"reward_kwargs of 'pickscore': {model_name} lacks {len(missing)} weights of a CLIPModel, such as "
                f"{min(missing)}; name a whole checkpoint"
            )
        self.scale = model.logit_scale.exp().item()  # before bfloat16 rounds it, by 1 %
        self.model = model.to(self.device, getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return the score of each image and its user prompt; `prompts` (the rewrites) do not count."""
        rows = {text: row for row, text in enumerate(dict.fromkeys(user_prompts))}
        text_features = normalized(list(rows), self._encode_texts, self.batch_size)
        image_features = normalized(images, self._encode_images, self.batch_size)
        cosines = (image_features * text_features[[rows[text] for text in user_prompts]]).sum(-1)
        return (cosines * self.scale / 100).tolist()

    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        inputs = self.processor(text=texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        return self.model.get_text_features(**inputs.to(self.device)).pooler_output

    def _encode_images(self, images: Images) -> torch.Tensor:
        inputs = self.processor(images=images, return_tensors="pt", device=self.device)
        return self.model.get_image_features(**inputs.to(self.device, self.model.dtype)).pooler_output
