"""`keyword_retention`: the share of the user's keywords that the rewrite still has. Higher is better, 0..1. No model.

A keyword is a word of the user's prompt that is not a function word; a prompt without keywords scores 1. Words are
compared in lower case, and as the same if they differ only in a plural ending. It guards against a policy that drops
the subject; it also punishes good synonyms, so give it a small weight. A translation can't be compared word by word:
when the rewrite is all in Latin letters, only such keywords (and numbers) count.
"""

import re


FUNCTION_WORDS = frozenset(
    "a an the this that these those and or but nor so of in on at by for from to into onto with without over under "
    "as is are was were be been being am do does did has have had it its i me my we our you your he she they them "
    "his her their there here please draw make show create generate paint render give want would like image picture "
    "photo some any very really just".split()
)


def words(text: str) -> list[str]:
    """The words of `text` in lower case, in order; letters of any script, digits, inner hyphens and apostrophes."""
    return re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", text.lower())


def stem(word: str) -> str:
    """`word` without a plural ending."""
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + replacement
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")) else word


def is_latin(word: str) -> bool:
    """Whether all letters of `word` are Latin ones, accents included."""
    return all(letter <= "\u024f" or not letter.isalpha() for letter in word)


def retained_share(user_prompt: str, rewrite: str) -> float:
    """The share, 0..1, of the keywords of `user_prompt` that `rewrite` has."""
    keywords = {stem(word) for word in words(user_prompt) if word not in FUNCTION_WORDS}
    written = {stem(word) for word in words(rewrite)}
    if written and all(map(is_latin, written)):
        keywords = set(filter(is_latin, keywords))
    return len(keywords & written) / len(keywords) if keywords else 1.0


def keyword_retention(completions: list[list[dict]], user_prompt: list[str], **columns: object) -> list[float]:
    """A score for each completion, against the `user_prompt` of its row."""
    return [
        retained_share(asked, completion[0]["content"])
        for asked, completion in zip(user_prompt, completions, strict=True)
    ]
