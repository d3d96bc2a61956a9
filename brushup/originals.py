"""Pictures of the users' own prompts, kept on disk: they do not change from one evaluation to the next."""

import hashlib
import json
import os
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from PIL import Image

from brushup.config import RenderConfig
from brushup.render import default_device


DEFAULT_FOLDER = Path.home() / ".cache" / "brushup" / "originals"


class Originals:
    """The pictures that one generator drew with one choice of settings.

    Args:
        folder: where they are kept; each generator with its settings has a folder of its own in it.
        render: the generator, already loaded (and so downloaded), and its settings.

    Raises:
        ValueError: which weights the generator has can't be told.
    """

    def __init__(self, folder: str | Path, render: RenderConfig):
        device = (render.render_device or default_device()).split(":")[0]
        settings = render.picture_settings() | {"device": device, "weights": self._weights(render)}
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder).expanduser() / key
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")

    @staticmethod
    def _weights(render: RenderConfig) -> list | str:
        """Which weights stand behind the generator's name: its files here, or its commit on the Hub."""
        if Path(render.generator).is_dir():
            files = sorted(Path(render.generator).rglob("*"))
            stats = [(str(file.relative_to(render.generator)), file.stat()) for file in files if file.is_file()]
            return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        where = {name: render.generator_init_kwargs.get(name) for name in ("cache_dir", "revision")}
        index = try_to_load_from_cache(render.generator, "model_index.json", **where)
        if not isinstance(index, str):
            raise ValueError(
                f"originals_cache: which version of {render.generator} was loaded can't be told from the Hub's cache; "
                "leave originals_cache out, or name the generator's folder"
            )
        return Path(index).parent.name

    def _file(self, prompt: str, seed: int) -> Path:
        return self.folder / f"{hashlib.sha256(f'{seed}|{prompt}'.encode()).hexdigest()[:32]}.png"

    def get(self, prompt: str, seed: int) -> Image.Image | None:
        """The picture, or None if it has not been drawn yet."""
        file = self._file(prompt, seed)
        return Image.open(file).convert("RGB") if file.is_file() else None

    def put(self, prompt: str, seed: int, picture: Image.Image) -> None:
        file = self._file(prompt, seed)
        unfinished = file.with_suffix(f".{os.getpid()}")  # another process may draw the same
        picture.save(unfinished, "png")
        unfinished.replace(file)
