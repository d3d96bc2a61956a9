"""The column `questions` of a prompt file: each is asked of the images, and an answer is expected."""

from typing import Any


def fault_of_questions(questions: Any) -> str | None:
    """Return the fault of a row's questions in words; None if there is none.

    Args:
        questions: None, or a list of mappings with `question` and `answer` (texts), and optional `needs` (the places
            in the list, from 0, of questions that must be right first: Cho et al. 2023, arXiv 2310.18235) and `skill`
            (a text, by which results are grouped).
    """
    if questions is None:
        return None
    if not isinstance(questions, list):
        return f"must be a list of questions, found {questions!r:.60}"
    for place, item in enumerate(questions):
        if not isinstance(item, dict):
            return f"[{place}] must be a mapping with `question` and `answer`, found {item!r:.60}"
        for name in ("question", "answer"):
            if not isinstance(item.get(name), str) or not item[name].strip():
                return f"[{place}] has no text `{name}`: {item!r:.80}"
        needs = item.get("needs") or []
        if not isinstance(needs, list):
            return f"[{place}] has `needs` that are no list: {needs!r:.60}"
        for need in needs:
            if type(need) is not int or not 0 <= need < place:
                return f"[{place}] needs {need!r}: `needs` must hold places of questions before it, from 0"
        if not isinstance(item.get("skill", ""), str | None):
            return f"[{place}] has a `skill` that is no text: {item['skill']!r:.60}"
    return None
