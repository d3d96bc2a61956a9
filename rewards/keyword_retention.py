"""`keyword_retention`: the share of the user's keywords that the rewrite still has. Higher is better, 0..1. No model.

A keyword is a word of the user's prompt that is not a function word; a prompt without keywords scores 1. Words are
compared in lower case, and as the same if they differ only in a plural ending. It guards against a policy that drops
the subject; it also punishes good synonyms, so give it a small weight. A translation can't be compared word by word:
when the rewrite is all in Latin letters, only such keywords (and numbers) count.
"""

from brushup.rewards.keywords import retained_share


def keyword_retention(completions: list[list[dict]], user_prompt: list[str], **columns: object) -> list[float]:
    """Return a score for each completion, against the `user_prompt` of its row."""
    return [
        retained_share(row_prompt, completion[0]["content"])
        for row_prompt, completion in zip(user_prompt, completions, strict=True)
    ]
