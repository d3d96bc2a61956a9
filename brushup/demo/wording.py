"""Texts of the page: scores as a table, remarks in words, the change of a prompt."""

import difflib
import html
from collections.abc import Iterator, Sequence

from brushup.policy.enhancement import Enhancement
from brushup.render.job import MAX_PROMPT_CHARS, RenderResult


MAX_SEED = 2**32 - 1


def problem_with(user_prompt: str, seed: float | None) -> str | None:
    """Return what the user must change before anything can be rendered; None if nothing."""
    if not user_prompt:
        return "The prompt is empty: type what shall be rendered."
    if len(user_prompt) > MAX_PROMPT_CHARS:
        return f"The prompt has {len(user_prompt):,} characters; at most {MAX_PROMPT_CHARS:,} can be rendered."
    if seed is None or not 0 <= seed <= MAX_SEED or seed != int(seed):
        return f"The seed must be a whole number from 0 to {MAX_SEED}."
    return None


def table_of(*results: RenderResult) -> str:
    """Return a Markdown table with a line for each reward; empty if nothing could be scored.

    Args:
        results: of the user's prompt, its rewrite and, with two turns, its revision; the change is from first to last.
    """
    names = dict.fromkeys(name for result in results for name in result.scores)
    columns = ["prompt", "rewrite", "revision"][: len(results)]
    lines = [f"| score | {' | '.join(columns)} | change |", f"| :-- |{' --: |' * (len(columns) + 1)}"]
    for name in names:
        scores = [result.scores.get(name) for result in results]
        cells = ["–" if score is None else f"{score:.3f}" for score in scores]
        change = "–" if None in (scores[0], scores[-1]) else _change(scores[-1] - scores[0])
        lines.append(f"| {name} | {' | '.join(cells)} | {change} |")
    return "\n".join(lines) if names else ""


def _change(gain: float) -> str:
    kind = "better" if gain >= 0.0005 else "worse" if gain <= -0.0005 else ""
    return f'<span class="{kind}">{gain:+.3f} {kind}</span>' if kind else "0.000"


def remarks_on(
    enhancement: Enhancement, results: Sequence[RenderResult], limits: dict[str, int], max_new_tokens: int
) -> Iterator[str]:
    """Yield what went wrong, or otherwise than a user expects.

    Args:
        results: of the user's prompt and the rewrite.
        limits: the tokens that each tokenizer of the generator reads.
    """
    if enhancement.malformed:
        yield (
            f"The model's answer was no prompt (empty, or not finished within {max_new_tokens} tokens), so your own "
            "prompt was rendered again."
        )
    if enhancement.kept:
        yield "The model keeps your prompt as it is."
    for error in dict.fromkeys(result.error for result in results if result.error):
        yield f"Could not be rendered: {error}"
    for subject, result in zip(("Your prompt", "The rewrite"), results, strict=True):
        for name, limit in limits.items():
            if result.tokens.get(name, 0) > limit:
                yield f"{subject} has {result.tokens[name]} {name} tokens; the generator reads the first {limit} only."


def changes(before: str, after: str) -> str:
    """Return a prompt as HTML, with the words that a revision took out and put in."""
    if before == after:
        return "<p>The model has looked at the image, and leaves its rewrite as it is.</p>"
    old, new, parts = before.split(), after.split(), []
    for kind, start, end, new_start, new_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        removed, added = (html.escape(" ".join(words)) for words in (old[start:end], new[new_start:new_end]))
        if kind == "equal":
            parts.append(added)
        else:
            parts += [f"<del>{removed}</del>"] * bool(removed) + [f"<ins>{added}</ins>"] * bool(added)
    return f"<p>Changed: {' '.join(parts)}</p>"


def paragraphs(*lines: str, problem: bool = False) -> str:
    """Return the lines as HTML; problems get a red bar."""
    kind = ' class="problem" role="alert"' if problem else ""
    return "".join(f"<p{kind}>{html.escape(line)}</p>" for line in lines)
