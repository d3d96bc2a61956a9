"""A rewrite, and the candidates among which it was picked."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Candidate:
    """A prompt that was rendered to be judged.

    Attributes:
        prompt: the user's, or a rewrite of it.
        image: of the prompt; None if it failed.
        scores: of the image, by the reward's name; empty if it failed.
        error: why the machine failed it, else None.
    """

    prompt: str
    image: Image.Image | None
    scores: dict[str, float]
    error: str | None = None


@dataclass(frozen=True)
class Enhancement:
    """A rewrite.

    Attributes:
        user_prompt: as the user wrote it.
        prompt: the prompt to render: the rewrite; or `user_prompt`, in the second turn the draft, if the answer was
            KEEP or malformed.
        malformed: whether the answer held no prompt.
        answer: the policy's whole answer; empty if the judge picked the user's prompt, and no answer was KEEP.
        candidates: with `best_of`, the user's prompt and its different rewrites, rendered and scored; with two turns
            and a judge, the draft and its revision.
        draft: with two turns, the rewrite of the first; `prompt` and `answer` are of the second.
        reason: with `best_of` or a judge, which candidate it picked, and why.
    """

    user_prompt: str
    prompt: str
    malformed: bool
    answer: str
    candidates: tuple[Candidate, ...] = ()
    draft: Candidate | None = None
    reason: str = ""

    @property
    def kept(self) -> bool:
        """Whether the policy, or the judge, leaves the user's prompt as it is."""
        return self.prompt == self.user_prompt and not self.malformed
