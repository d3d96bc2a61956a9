"""The words of a prompt, for the text rewards that count or compare them."""

import re


FUNCTION_WORDS = frozenset(
    "a an the this that these those and or but nor so of in on at by for from to into onto with without over under "
    "as is are was were be been being am do does did has have had it its i me my we our you your he she they them "
    "his her their there here please draw make show create generate paint render give want would like image picture "
    "photo some any very really just".split()
)


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case: letters of any script, digits, inner hyphens and apostrophes."""
    return re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", text.lower())


def stem(word: str) -> str:
    """Return `word` without a plural ending."""
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + replacement
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")) else word


def is_latin(word: str) -> bool:
    """Return whether all letters of `word` are Latin ones, accents included."""
    return all(letter <= "\u024f" or not letter.isalpha() for letter in word)


def retained_share(user_prompt: str, rewrite: str) -> float:
    """Return the share, 0..1, of the keywords of `user_prompt` that `rewrite` has."""
    keywords = {stem(word) for word in words(user_prompt) if word not in FUNCTION_WORDS}
    written = {stem(word) for word in words(rewrite)}
    if written and all(map(is_latin, written)):
        keywords = set(filter(is_latin, keywords))
    return len(keywords & written) / len(keywords) if keywords else 1.0
