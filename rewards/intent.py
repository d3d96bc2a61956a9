"""`intent`: whether the rewrite means what the user wrote, by a sentence encoder. Higher is better, 0..1.

max(cosine, 0) of the two embeddings, which are means of the last hidden states over the tokens of a text, as
sentence-transformers makes them: Reimers and Gurevych 2019 (arXiv 1908.10084), and 2020 (arXiv 2004.09813) for many
languages. Default model: paraphrase-multilingual-MiniLM-L12-v2 (Apache-2.0, 118M parameters, about 0.5 GB in float32),
which puts a Korean prompt next to its English translation. Other encoders with mean pooling do as well. A rewrite that
adds detail moves away from a short prompt, so a weight too large keeps the policy from adding any.
"""

import torch
from transformers import AutoModel, AutoTokenizer


class IntentReward:
    """A score of completions against the user's prompt.

    Args:
        model_name: an encoder that transformers' `AutoModel` loads: Hub id or folder.
        device: default cpu, because the GPU of the training process is full enough.
        batch_size: texts encoded at once.
        max_length: the tokens of a text that are read; 128 is what sentence-transformers has for the default model.
    """

    def __init__(
        self,
        model_name: str = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        device: str | None = None,
        batch_size: int = 64,
        max_length: int = 128,
    ):
        device = device or "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(model_name)
        self.model = AutoModel.from_pretrained(model_name, dtype=torch.float32).to(device).eval()
        self.device, self.batch_size, self.max_length = device, batch_size, max_length

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> torch.Tensor:
        """Return embeddings of length one, (len(texts), width)."""
        embeddings = []
        for start in range(0, len(texts), self.batch_size):
            tokens = self.tokenizer(
                texts[start : start + self.batch_size],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.device)
            hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            embeddings.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(embeddings), dim=-1)

    def __call__(self, completions: list[list[dict]], user_prompt: list[str], **columns: object) -> list[float]:
        """Return a score for each completion, against the `user_prompt` of its row."""
        rewrites = [completion[0]["content"] for completion in completions]
        texts = list(dict.fromkeys([*user_prompt, *rewrites]))
        row = {text: index for index, text in enumerate(texts)}
        embeddings = self.embed(texts)
        before = embeddings[[row[text] for text in user_prompt]]
        after = embeddings[[row[text] for text in rewrites]]
        return (before * after).sum(-1).clamp(0, 1).tolist()
