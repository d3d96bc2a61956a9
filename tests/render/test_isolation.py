"""An image depends on its prompt and seed alone, whatever the pipeline and the settings are."""

import inspect
import re

import diffusers
import pytest
from conftest import REPOSITORY
from diffusers import DiffusionPipeline

from brushup.config import RenderConfig
from brushup.render import isolation
from brushup.render.renderer import Renderer
from support.generators import difference
from support.many_generators import BUILDERS, save_loud_generator


LONG = "an old wooden boat beside a stone bridge in the fog"
JOBS = [(LONG, 1), ("a dog", 1), (LONG, 2), ("a dog", 2)]
PAGE = (REPOSITORY / "docs" / "generators.md").read_text()
TRIED, UNTRIED = (dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", part, re.M)) for part in PAGE.split("not tried"))
LARGE = ("HiDreamImagePipeline", "Kandinsky5T2IPipeline")  # they take no small size


def text_to_image_classes() -> set[str]:
    """All pipelines of this diffusers that may render an image of a prompt alone, by their signature."""
    found = set()
    for name in dir(diffusers):
        kind = getattr(diffusers, name, None) if "Pipeline" in name else None
        if not (inspect.isclass(kind) and issubclass(kind, DiffusionPipeline)) or hasattr(kind, "_backends"):
            continue  # `_backends`: stands for a class whose packages are not installed
        parameters = inspect.signature(kind.__call__).parameters.copy()
        if "prompt" not in parameters or ".deprecated." in kind.__module__:
            continue
        others = [parameter for name, parameter in parameters.items() if name not in ("self", "prompt")]
        needs_more = any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in others)
        if not needs_more and not any(word in name for name in parameters for word in ("video", "frames", "audio")):
            found.add(name)
    return found


def test_each_class_of_diffusers_has_a_verdict():
    assert not set(TRIED) & set(UNTRIED)
    assert text_to_image_classes() == set(TRIED) | set(UNTRIED), "add it to tests/support/many_generators.py"
    assert set(BUILDERS) == set(TRIED)
    assert {TRIED[name] for name in isolation.ISOLATED_PIPELINES} == {"together"}


def load(name: str, folder, **render_kwargs) -> Renderer:
    call = {"num_inference_steps": 2, **BUILDERS[name][1], **render_kwargs}
    return Renderer(RenderConfig(folder, render_kwargs=call, render_device="cpu"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in TRIED]
)
def test_each_image_is_what_it_is_alone_or_its_pipeline_is_refused(name, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(isolation, "ISOLATED_PIPELINES", ())
    folder = save_loud_generator(name, tmp_path)
    if TRIED[name] == "refused":
        with pytest.raises(ValueError, match=f"generator: {name} renders no image from one prompt alone"):
            load(name, folder)
        return
    renderer = load(name, folder)
    assert str(renderer.sharing) == TRIED[name] and renderer.images_drawn == 0
    together = renderer.render(JOBS)
    assert difference(together, [renderer.render([job])[0] for job in JOBS]) <= 2
    assert difference(together[:1], together[1:2]) > 5 and difference(together[:1], together[2:3]) > 5
    warnings = [record.getMessage() for record in caplog.records if record.name == isolation.__name__]
    if renderer.sharing == isolation.Sharing(True, True) or name == "LDMTextToImagePipeline":  # takes no number
        assert warnings == []
    else:
        assert len(warnings) == 1 and warnings[0].startswith(f"generator: {name} renders {TRIED[name]}, which is slow")
    assert all(limit < 10_000 for limit in renderer.token_limits.values())
