"""`length`: how near the rewrite's length is to a target, in the generator's tokens. Higher is better, 0..1. No model.

1 at the target, falling linearly to 0 at no token and at twice the target. Under the other rewards alone rewrites grow
ever longer, and what a text encoder does not read is lost: CLIP reads 77 tokens, the two special ones included.
"""


class LengthReward:
    """A score of completions by their length.

    Args:
        target: the best length, in tokens, special tokens included.
        tokenizer: `clip`, `t5`, ..., as the generator's tokenizers are called; default: its first (CLIP for SD3).

    Raises:
        ValueError: `target` is not positive, or (when called) the generator has no such tokenizer.
    """

    def __init__(self, target: int, tokenizer: str | None = None):
        if target <= 0:
            raise ValueError(f"reward_kwargs of 'length': target is {target}; it must be positive")
        self.target = target
        self.tokenizer = tokenizer

    def score(self, tokens: dict[str, int]) -> float | None:
        """Return the score for a length by tokenizer; None if that is empty, as where nothing was rendered."""
        if not tokens:
            return None
        name = self.tokenizer or next(iter(tokens))
        if name not in tokens:
            raise ValueError(
                f"reward_kwargs of 'length': the generator has no tokenizer {name!r}; it has {', '.join(tokens)}"
            )
        return max(0.0, 1 - abs(tokens[name] - self.target) / self.target)

    def __call__(
        self, completions: list[list[dict]], rewrite_tokens: list[dict[str, int]], **columns: object
    ) -> list[float | None]:
        """Return a score or None for each row; the trainer adds `rewrite_tokens`, the `RenderResult.tokens`."""
        return [self.score(tokens) for tokens in rewrite_tokens]
