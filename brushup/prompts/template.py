"""The chat messages that ask a policy for a rewrite, and the parser of its answer.

Training, evaluation and inference all use `build_messages` and `parse_answer`, so that a policy is judged on exactly
what its users will get.
"""

import re
import unicodedata


SYSTEM_PROMPT = (
    "You rewrite a user's request as one prompt for an image generator. Keep everything the user asked for: what it "
    "shows, how many, which colors, sizes and places. Use plain words that the image generator knows, and add what "
    "the user left out. Answer with the prompt alone, in English, whatever language the user writes; or with the word "
    "KEEP, if the request is such a prompt already."
)
KEEP = "KEEP"  # the answer that leaves the prompt as it is: the user's, or in the second turn the draft
REVISE = (
    "This is the image of your prompt. If it shows all that I asked for, answer KEEP; else answer with a better "
    "prompt."
)


def build_messages(
    user_prompt: str, system_prompt: str = SYSTEM_PROMPT, draft: str | None = None
) -> list[dict[str, str]]:
    """Return the conversation that asks a policy to rewrite `user_prompt` (system, user).

    With a `draft`, the rewrite of the first turn, it goes on with that (assistant) and with the request to revise it
    (user), whose message the draft's image belongs in.
    """
    messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": user_prompt}]
    if draft is not None:
        messages += [{"role": "assistant", "content": draft}, {"role": "user", "content": REVISE}]
    return messages


# A label is a short run of these words before a colon: "Enhanced prompt:", "Here's the improved prompt for SD3:".
_LABEL_WORD = (
    r"(?:prompts?|description|caption|rewrite|rewritten|enhanced|improved|refined|revised|optimi[sz]ed|output|answer|"
    r"result|response|version|option|(?:향상된 |개선된 )?프롬프트|답변|결과|提示词|プロンプト)"
)
_LABEL = re.compile(
    r"^(?:(?:sure|certainly|of course|okay|ok|absolutely|great|here(?:['’]s| is| are)?|this is)\b[,.!]?\s*)*"
    r"(?:(?:the|your|my|an?|new|final|image|text-to-image|detailed|full|better|possible|more|vivid)\s+|"
    rf"{_LABEL_WORD}\s+){{0,5}}{_LABEL_WORD}(?:\s+(?:for|of)\s[^\n:：]{{1,40}})?\s*\d*\s*[:：]\s*",
    re.IGNORECASE,
)
# Chatter is a whole paragraph addressed to the user instead of the generator.
_CHATTER = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok|great)[,!.]|"
    r"here(?:['’]s| is| are)\b.*\b(?:prompt|version|rewrite|description|caption)|"
    r"i (?:have|hope|kept|added|changed|rewrote|would|will|can|cannot|can['’]t)\b|i['’](?:ve|ll|m|d)\b|"
    r"let me know\b|feel free\b|hope (?:this|that|it)\b|this (?:prompt|version|rewrite|description)\b|"
    r"(?:note|explanation)\s*[:：]|note that\b|would you\b|"
    r"if you(?:['’]d)? (?:want|like|need)\b|물론|네[,!. ]|다음은|참고)",
    re.IGNORECASE,
)
# A paragraph ends at an empty line, before a note, and before the next of several numbered answers.
_PARAGRAPH_END = re.compile(r"\n\s*\n|\n(?=\s*[*#_]*(?:note|explanation)\b)|\n(?=\s*\d+[.)]\s)", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」", "『": "』", "`": "`", "„": "“"}
_THOUGHTS = "(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
_THINKING_BEGINS = re.compile(rf"<{_THOUGHTS}>|\[THINK\]|◁think▷", re.IGNORECASE)
_THINKING_ENDS = re.compile(rf"</{_THOUGHTS}>|\[/THINK\]|◁/think▷", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>|</?s>")


def _strip_wrapping(text: str) -> str:
    """Return `text` without the markdown, quotes and list marks that enclose all of it."""
    while True:
        before = text
        text = text.strip()
        text = re.sub(r"^(?:#{1,6}|>|[-*•]|\d+[.)])\s+", "", text)
        for mark in ("***", "**", "__", "*", "_"):
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
                text = text[len(mark) : -len(mark)]
                break
        if len(text) >= 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1]
        for mark in ('"', "**", "`"):  # one that was never closed, or never opened
            if text.count(mark) == 1:
                text = text.removeprefix(mark).removesuffix(mark)
        if text == before:
            return text


def _strip_label(paragraph: str) -> str:
    """Return the paragraph without a label at its start, such as "Enhanced prompt:"."""
    bare = re.sub(r"[*_`#]{1,3}", "", paragraph).strip()
    match = _LABEL.match(bare)
    return bare[match.end() :] if match else paragraph


def is_keep(prompt: str) -> bool:
    """Return whether a parsed prompt is the word that keeps the user's prompt; case and a full stop do not count."""
    return prompt.rstrip(".!").upper() == KEEP


def parse_answer(answer: str, current: str, finished: bool = True) -> str | None:
    """Return the prompt that a policy's answer asks to render: the prompt inside it, or `current`, if it is KEEP.

    Args:
        answer, finished: as for `parse_prompt`.
        current: the user's prompt, or in the second turn the draft.
    """
    prompt = parse_prompt(answer, finished)
    return current if prompt is not None and is_keep(prompt) else prompt


def parse_prompt(answer: str, finished: bool = True) -> str | None:
    """Return the prompt inside a policy's answer, on one line; "KEEP" as it is.

    Thinking blocks, code fences, special tokens, labels ("Enhanced prompt:"), quotes, markdown, list marks and
    paragraphs of chatter around the prompt are removed; of several paragraphs the first that is a prompt counts.

    Args:
        answer: the decoded completion.
        finished: False if the policy was cut off before it ended its answer (no end-of-sequence token).

    Returns:
        The prompt, or None if the answer is malformed: empty, cut off, or with thoughts (`<think>`, `[THINK]`,
        `<reasoning>`, ...) that never end.
    """
    if not finished:
        return None
    text = unicodedata.normalize("NFC", answer).replace("\r\n", "\n")
    text = re.sub(r"[^\S\n]+", " ", text)  # long runs of spaces would make the patterns below slow
    text = re.sub(r" ?\n ?", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    text = _THINKING_ENDS.split(text)[-1]  # some templates put the opening tag into the prompt
    if _THINKING_BEGINS.search(text):
        return None
    text = _SPECIAL_TOKEN.sub("", text)
    fenced = re.search(r"```[a-zA-Z]*\n(.*?)```", text, flags=re.DOTALL)
    if fenced:
        text = fenced.group(1)
    for tag in ("prompt", "answer"):
        inside, closed, _ = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")
        text = inside if closed else text
    text = re.sub(r"^\s*#{1,6}\s[^\n]*\n+(?=\s*\S)", "", text)  # a heading over the prompt
    for paragraph in _PARAGRAPH_END.split(text.strip()):
        paragraph = _strip_wrapping(_strip_label(_strip_wrapping(paragraph)))
        if not paragraph or _CHATTER.match(paragraph):
            continue
        prompt = re.sub(r"\s+", " ", paragraph).strip()
        if re.search(r"\w", prompt):
            return prompt
    return None
