"""`language`: whether the rewrite is English, whatever language the user wrote. Higher is better, 0..1.

The share of its letters that are Latin ones, times the probability that those words are English. A text in quotes
that the user's prompt has, too, shall appear in the image, and does not count ('a sign that reads "안녕"'). A rewrite
without letters scores 0.

Model: py3langid 0.4 (BSD-3-Clause; 4.6 MB, carried by the package; about 80 MB of memory; 0.05 ms a prompt), a naive
Bayes classifier over byte n-grams; Lui and Baldwin 2012 (ACL, P12-3005). It chooses among the 21 `LANGUAGES`, and one
or two words are often too little for it ("a cat" is English with probability 0.04, but nothing else with more than
0.3). So a rewrite has the benefit of the doubt, and 1, unless another language has at least probability `SURE`.
"""

import re

from brushup.rewards.keywords import is_latin


LANGUAGES = "ar cs de en es fr hi id it ja ko nl pl pt ru sv th tr uk vi zh".split()
SURE = 0.5
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»|「([^」]+)」|『([^』]+)』|(?<!\w)['‘]([^'’]+)['’](?!\w)")


class LanguageReward:
    """A score of completions by their language.

    Raises:
        ImportError: py3langid is not installed.
    """

    def __init__(self):
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise ImportError("reward 'language' needs py3langid: pip install -e \".[rewards]\"") from error
        self.identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self.identifier.set_languages(LANGUAGES)

    def score(self, user_prompt: str, rewrite: str) -> float:
        """Return the score, 0..1, of a rewrite."""
        text = _QUOTED.sub(lambda quote: " " if quote[quote.lastindex] in user_prompt else quote[0], rewrite)
        letters = [character for character in text if character.isalpha()]
        latin = "".join(character if is_latin(character) else " " for character in text)
        share = sum(map(is_latin, letters)) / len(letters) if letters else 0.0
        probabilities = self.identifier.rank(latin)
        likeliest, probability = probabilities[0]
        doubtful = likeliest == "en" or probability < SURE
        return share * (1.0 if doubtful else dict(probabilities)["en"])

    def __call__(self, completions: list[list[dict]], user_prompt: list[str], **columns: object) -> list[float]:
        """Return a score for each completion, against the `user_prompt` of its row."""
        return [
            self.score(row_prompt, completion[0]["content"])
            for row_prompt, completion in zip(user_prompt, completions, strict=True)
        ]
