"""`format`: whether the policy's answer is the prompt alone, as it is told to. Higher is better, 0..1. No model.

The share of the answer's characters that the parser (brushup/prompts/template.py) keeps as the prompt. Labels, quotes,
chatter and thinking lower it; an answer that is empty, malformed or cut off has 0. White space at the ends does not
count, elsewhere any amount of it counts as one space. A prompt that no policy wrote, such as the user's own, has 1.
The parser forgives all of this, but the tokens cost time, and other programs that use the policy may have no parser.

Source: the format reward of DeepSeek-R1, Guo et al. 2025 (arXiv 2501.12948), there 0 or 1; a share also tells a policy
that is never quite right when it gets nearer.
"""

import unicodedata

from brushup.prompts.template import KEEP, is_keep, parse_prompt


def kept_share(answer: str, prompt: str) -> float:
    """Return the share, 0..1, of `answer`, on one line as the parser puts it, that is the parsed `prompt`, or KEEP."""
    parsed = parse_prompt(answer) or ""
    if is_keep(parsed):
        parsed = prompt = KEEP
    if not parsed or parsed != prompt:  # malformed or cut off: `prompt` is empty or the user's own
        return 0.0
    return len(prompt) / len(" ".join(unicodedata.normalize("NFC", answer).split()))


def format_reward(completions: list[list[dict]], raw_answer: list[str | None], **columns: object) -> list[float]:
    """Return a score for each completion; the trainer adds `raw_answer`: the policy's text, or None."""
    return [
        1.0 if raw is None else kept_share(raw, completion[0]["content"])
        for raw, completion in zip(raw_answer, completions, strict=True)
    ]
