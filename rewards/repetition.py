"""`repetition`: the share of the rewrite's n-grams that are not repeats. Higher is better, 0..1, 1 = none. No model.

Source: the repetition penalty of Yeo et al. 2025 (arXiv 2502.03373, appendix C.2), as in TRL, plus 1: the number of
different n-grams over the number of all. TRL counts the policy's tokens; here it is words in lower case, so that a
prompt has the same score whoever wrote it, and punctuation and spaces do not matter. A rewrite of fewer than
`ngram_size` words has no n-gram that could be repeated: 1.
"""

from trl.rewards import get_repetition_penalty_reward

from brushup.rewards.keywords import words


class RepetitionReward:
    """A score of completions by their repeats.

    Args:
        ngram_size: words an n-gram. With 3, "a red cup and a red plate" repeats nothing; with 2 it repeats "a red".

    Raises:
        ValueError: `ngram_size` is less than 1.
    """

    def __init__(self, ngram_size: int = 3):
        if ngram_size < 1:
            raise ValueError(f"reward_kwargs of 'repetition': ngram_size is {ngram_size}; it must be at least 1")
        self.penalty = get_repetition_penalty_reward(ngram_size, max_penalty=-1.0)

    def __call__(self, completions: list[list[dict]], **columns: object) -> list[float]:
        """Return the share of n-grams that are no repeats for each completion."""
        return [
            1.0 + penalty for penalty in self.penalty([words(completion[0]["content"]) for completion in completions])
        ]
