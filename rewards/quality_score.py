"""`quality_score`: the share of five signs that a prompt was worked out. Higher is better, 0..1. No model.

The five points: longer than the user's prompt; keeps all of the user's keywords; has at least five new words; has a
word of quality ("detailed", "4k", ...); is a sentence of at least five words. It measures form, not truth: use it as
a monitor (weight 0) or with a small weight.
"""

from brushup.rewards.keywords import retained_share, words


QUALITY_WORDS = (
    "high quality", "best quality", "detailed", "4k", "8k", "hd", "high resolution", "sharp", "professional",
    "masterpiece", "cinematic", "photorealistic", "realistic", "intricate", "lighting",
)  # fmt: skip


def quality_points(user_prompt: str, rewrite: str) -> dict[str, bool]:
    """Return which of the five points the rewrite earns, by name."""
    before, after = words(user_prompt), words(rewrite)
    text = f" {' '.join(after)} "
    return {
        "longer": len(rewrite.strip()) > len(user_prompt.strip()),
        "keeps_keywords": retained_share(user_prompt, rewrite) == 1.0,
        "five_new_words": len(set(after) - set(before)) >= 5,
        "quality_words": any(f" {word} " in text for word in QUALITY_WORDS),
        "sentence": len(after) >= 5 and len(set(after)) >= 3,
    }


def quality_score(completions: list[list[dict]], user_prompt: list[str], **columns: object) -> list[float]:
    """Return the share of the five points for each completion, against the `user_prompt` of its row."""
    return [
        sum(quality_points(row_prompt, completion[0]["content"]).values()) / 5
        for row_prompt, completion in zip(user_prompt, completions, strict=True)
    ]
