"""Masking of secrets in settings that trackers, cards and results show."""

import re
from typing import Any


SECRET_NAMES = re.compile(
    r"(^|_)(passw(or)?ds?|passwd|passphrase|pwd|secrets?|credentials?|creds|authorization|bearer|jwt|cookies?"
    r"|(connection|conn)_?(string|str)"
    r"|(o|basic_?|http_?)?auth$"
    r"|(api|access|secret|private|signing|encryption|ssh|account|auth|deploy|master|service|subscription|license"
    r"|openai|anthropic|gemini|google|azure|aws|wandb|hf|hub)_?keys?"
    r"|(api|access|auth|bearer|refresh|id|session|hf|hub|sas)_?tokens?$|token$)(_|$)"
    r"|(password|passwd|apikey)s?$"
)
# Special tokens and counts of tokens
HARMLESS_NAMES = re.compile(
    r"(^|_)(max|min|num|per|eos|bos|pad|unk|cls|sep|mask|image|video|audio|vision|special|stop|prompt|think)_token$"
)
USER_IN_URL = re.compile(r"://[^\s/?#]*@")
QUERY_OF_URL = re.compile(r"([?&])([^=&#\s]+)=([^&#\s]+)")
BEARER = re.compile(r"^bearer\s+\S+$|(?<=authorization:)\s*\S.*", re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Return whether a setting of this name, in snake case, kebab case or camel case, holds a secret."""
    words = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    return bool(SECRET_NAMES.search(words)) and not HARMLESS_NAMES.search(words)


def masked(settings: Any) -> Any:
    """Return a copy of the settings in which secrets are masked, at any depth.

    A secret is the value of a key that names one; also a user with a password in a URL, and a bearer token.
    """
    if isinstance(settings, dict):
        return {
            key: f"<{str(key).upper()}>" if value and value is not True and names_secret(str(key)) else masked(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return [masked(value) for value in settings]
    if not isinstance(settings, str):
        return settings
    text = USER_IN_URL.sub("://<USER:PASSWORD>@", BEARER.sub("<TOKEN>", settings))
    return QUERY_OF_URL.sub(lambda m: f"{m[1]}{m[2]}=<{m[2].upper()}>" if names_secret(m[2]) else m[0], text)
