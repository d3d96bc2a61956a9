import json
import os
import signal
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of a Hugging Face library: tests need no network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from two cores, and other processes run, too

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoTokenizer, CompileConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2VLForConditionalGeneration

from brushup.config import RenderConfig
from brushup.policy import compiled
from brushup.render.renderer import Renderer
from brushup.render.worker import LocalWorker
from brushup.rewards.registry import RewardSpec


# A shell's background job ignores SIGINT, nohup SIGHUP, and the programs that tests start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

REPOSITORY = Path(__file__).parent.parent
TINY_WORLD = REPOSITORY / "data" / "tiny_world"
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
RENDER_KWARGS = {
    "num_inference_steps": 6,
    "guidance_scale": 3.0,
    "height": 48,
    "width": 48,
    "max_sequence_length": 1,
}


@pytest.fixture
def compiled_on_cpu(monkeypatch):
    """Compile the policy's decoding step on the CPU as on CUDA, but make no machine code of the graphs."""
    torch._dynamo.reset()
    counters.clear()
    settings = CompileConfig(dynamic=False, backend="eager", mode=None)
    settings._compile_all_devices = True
    monkeypatch.setenv("CC", "none")  # no machine code, no compiler
    monkeypatch.setattr(compiled, "DEVICES", ("cpu",))
    monkeypatch.setattr(compiled, "COMPILING", settings)


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return Renderer(RenderConfig(str(TINY_WORLD / "generator"), WITHOUT_T5, RENDER_KWARGS, render_device="cpu"))


@pytest.fixture(scope="session")
def clip():
    return RewardSpec("clip", kwargs={"model_name": f"local-dir:{TINY_WORLD / 'scorer'}"}).load("cpu")


@pytest.fixture(scope="session")
def worker(renderer, clip) -> LocalWorker:
    return LocalWorker(renderer, {"clip": clip})


@pytest.fixture(scope="session")
def validation_rows() -> list[dict]:
    return [json.loads(line) for line in (TINY_WORLD / "validation.jsonl").read_text().splitlines()]


def few_prompts(folder: Path, count: int) -> str:
    """Return the path of a file in the folder with the first held-out prompts of the tiny world."""
    rows = (TINY_WORLD / "validation.jsonl").read_text().splitlines()[:count]
    (folder / "validation.jsonl").write_text("\n".join(rows))
    return str(folder / "validation.jsonl")


@pytest.fixture(scope="session", autouse=True)
def first_command(request, tmp_path_factory):
    """README's first command, started at once if a test needs its output: it takes a core, and tests another."""
    from support.readme import FirstCommand

    command = FirstCommand(tmp_path_factory.mktemp("clone"))
    if any("trained" in item.fixturenames for item in request.session.items):
        command.start()
    yield command
    if command.process and command.process.poll() is None:
        os.killpg(command.process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory):
    """The outcome and the folder of a short run (support/short_run.py); it is told to resume, but finds nothing."""
    from support.launching import recipe, run
    from support.short_run import flags

    folder = tmp_path_factory.mktemp("short_run")
    return run(recipe(*flags(folder), "--resume_from_checkpoint", "true")), folder / "out"


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """The render service that tests share: two replicas, and all rewards that any of them asks for."""
    from support.service import Service

    rewards = ("clip", "questions", "tests/support/breaking.py:Breaking")
    folder = tmp_path_factory.mktemp("service")
    service = Service(folder, "--num_replicas", "2", "--worker_timeout", "36", "--reward_funcs", *rewards)
    yield service
    service.end()


@pytest.fixture(scope="session")
def text_policy(tmp_path_factory) -> str:
    """A text-only policy: the text model of the tiny Qwen2-VL as a Qwen2."""
    folder = tmp_path_factory.mktemp("text_policy")
    vision_language = Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy", dtype=torch.float32)
    settings = vision_language.config.text_config.to_dict()
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings["rope_parameters"]["rope_theta"]}
    model = Qwen2ForCausalLM(Qwen2Config(**{key: settings[key] for key in settings if key in vars(Qwen2Config())}))
    model.model.load_state_dict(vision_language.model.language_model.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY_WORLD / "policy").save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["processor_class"]  # it came with a processor for pictures
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="module")  # while it is open, no other event loop can run in this thread
def browser():
    """Debian's Chromium, or the one that CHROMIUM names, without a window; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not Path(path).exists():
        pytest.skip(f"there is no browser at {path}: apt-get install chromium")
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
