"""The request as a policy reads it: one way for training, validation and use."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from brushup.prompts.template import SYSTEM_PROMPT, build_messages


Processor = ProcessorMixin | PreTrainedTokenizerBase  # of an image-text policy, or of one that reads text only

# Jinja at the start of a chat template that knows no system role: the system's text goes into the user's turn.
SYSTEM_INTO_USER = """\
{%- if messages[0]['role'] == 'system' %}
{%- set system, first = messages[0]['content'], messages[1]['content'] %}
{%- if system is string and first is string %}
{%- set joined = system + '\\n\\n' + first %}
{%- else %}
{%- set system = [{'type': 'text', 'text': system}] if system is string else system %}
{%- set first = [{'type': 'text', 'text': first}] if first is string else first %}
{%- set joined = system + [{'type': 'text', 'text': '\\n\\n'}] + first %}
{%- endif %}
{%- set messages = [{'role': 'user', 'content': joined}] + messages[2:] %}
{%- endif %}"""


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a policy's processor."""
    return processor.tokenizer if isinstance(processor, ProcessorMixin) else processor


def prepare_processor(processor: Processor, template_kwargs: dict[str, Any] | None = None) -> None:
    """Make the processor ask for rewrites: it pads on the left, and its chat template takes a system message.

    Arguments of the template become a part of it, so that a saved processor asks as it did in training, also where
    Brushup does not run (`vllm serve`).

    Args:
        processor: is changed.
        template_kwargs: e.g. {"enable_thinking": False} for Qwen3.

    Raises:
        ValueError: there is no chat template, or it can't express the request.
    """
    tokenizer = tokenizer_of(processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not processor.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, so it can't be asked for anything; take "
            "the model's instruct version"
        )
    for name, value in (template_kwargs or {}).items():
        literal = "none" if value is None else json.dumps(value)
        _begin_template(processor, f"{{%- set {name} = {literal} %}}")
    if not _takes_system(processor):
        _begin_template(processor, SYSTEM_INTO_USER)
        if not _takes_system(processor):
            raise ValueError(f"{tokenizer.name_or_path}: its chat template takes no system and user message in turn")


def _begin_template(processor: Processor, start: str) -> None:
    """Put the text at the start of the chat template (of each, if it has several), unless it is there already."""
    template = processor.chat_template
    named = template if isinstance(template, dict) else {"": template}
    named = {name: text if start in text else start + text for name, text in named.items()}
    processor.chat_template = named if isinstance(template, dict) else named[""]


def _takes_system(processor: Processor) -> bool:
    conversation = _structured(processor, build_messages("a cat"))
    try:
        text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    except Exception:  # templates raise errors of Jinja and of Python
        return False
    return SYSTEM_PROMPT in text and "a cat" in text


class Draft(NamedTuple):
    """A rewrite that was rendered, for the policy to look at."""

    prompt: str
    image: Image.Image


class Request(NamedTuple):
    """A request to rewrite a user's prompt, with the user's reference image, if any; or to revise a draft."""

    user_prompt: str
    image: Image.Image | None = None
    draft: Draft | None = None

    @property
    def current_prompt(self) -> str:
        """The prompt that the answer replaces, and that KEEP leaves as it is."""
        return self.draft.prompt if self.draft else self.user_prompt


def ask(
    processor: Processor, user_prompt: str, image: Image.Image | None = None, draft: Draft | None = None
) -> list[dict[str, Any]]:
    """Return the messages that ask the policy to rewrite the user's prompt, or to revise the draft of a rewrite.

    The user's image stands before the prompt, the draft's before the request to revise it. Words stay text: a space
    breaks up those that the tokenizer would read as a special token.
    """
    tokenizer = tokenizer_of(processor)
    drafted = draft and without_special_tokens(tokenizer, draft.prompt)
    messages = build_messages(without_special_tokens(tokenizer, user_prompt), draft=drafted)
    for message, shown in ((messages[1], image), (messages[-1], draft and draft.image)):
        if shown:
            message["content"] = [{"type": "image", "image": shown}, {"type": "text", "text": message["content"]}]
    return prepare_multimodal_messages(messages) if image or draft else messages


def with_requests(rows: Dataset, processor: Processor) -> Dataset:
    """Return the rows with the column `prompt` as this policy is asked; images stay in their column."""
    requests = [ask(processor, user_prompt) for user_prompt in rows["user_prompt"]]
    return rows.remove_columns("prompt").add_column("prompt", requests)


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the text with a space after the first character of each special token, and of each tag, in it."""
    return _special_words(tokenizer).sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


@functools.lru_cache(maxsize=8)
def _special_words(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    added = tokenizer.added_tokens_decoder.values()
    words = {token.content for token in added if token.special or re.fullmatch(r"[<\[]\S+[>\]]", token.content)}
    words = {word for word in words | {*tokenizer.all_special_tokens} if word.strip()}
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def tokenize(processor: Processor, conversations: Sequence[list[dict[str, Any]]]) -> BatchFeature:
    """Return the policy's inputs, padded on the left: the tokens, and images, that TRL makes of them."""
    padding = {"padding": True}
    return processor.apply_chat_template(
        [_structured(processor, conversation) for conversation in conversations],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **({"processor_kwargs": padding} if isinstance(processor, ProcessorMixin) else padding),
    )


def _structured(processor: Processor, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return prepare_multimodal_messages(messages) if isinstance(processor, ProcessorMixin) else messages
