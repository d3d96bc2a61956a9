"""A web page: type a prompt, and see the images of it and of its rewrite side by side, with their scores.

Of several rewrites, or of a rewrite and its revision (the policy looks at the image, and revises), it says which one
the image rewards pick, and why.

With the YAML file of a run, which names the generator and the rewards, and the policy that the run trained:

    pip install -e ".[demo]" && python recipes/demo.py --config recipes/tiny_cpu.yaml --models runs/tiny_cpu

`--models` takes several adapters or models to choose among, folders or Hub ids; the policy before training can always
be chosen, too. `--worker http://127.0.0.1:8100` renders with a service (recipes/serve.py) instead of in this process.
"""

from brushup.flags import answer_at_once, parse


if __name__ == "__main__":  # before the imports below, which take ten seconds
    answer_at_once(__doc__, "PromptConfig", "RenderConfig", "DemoConfig")

import dataclasses
import os
import socket
import sys
from pathlib import Path


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
try:
    import gradio  # noqa: F401
except ImportError:
    sys.exit('recipes/demo.py needs Gradio: pip install -e ".[demo]"')
from transformers import ProcessorMixin

from brushup.config import PromptConfig, RenderConfig
from brushup.console import quiet_libraries, serve_command
from brushup.demo.page import CSS, THEME, build_page
from brushup.policy.load import load_processor
from brushup.prompts.dataset import load_prompts, order_rows
from brushup.recipe_config import DemoConfig
from brushup.render.job import Worker
from brushup.render.service.launch import get_worker
from brushup.rewards.registry import TextReward, load_text_rewards, parse_rewards


def find_port(host: str, port: int) -> int:
    """Return the port, a free one for 0; raise a ValueError if the page cannot listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else one that was just in use is refused
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"can't listen on {host}:{port} ({error}); --port 0 takes any that is free") from error
        return probe.getsockname()[1]


def load_examples(prompts: PromptConfig, examples: str | None) -> list[tuple[str, str]]:
    """Return (prompt, category) of each example; the categories take turns.

    Args:
        prompts: of the run.
        examples: their file or Hub data set; see `DemoConfig`.
    """
    beside = Path(prompts.validation_prompts).with_name("challenging.jsonl")
    source = examples or (str(beside) if beside.is_file() else prompts.validation_prompts)
    rows = load_prompts(source, "validation", prompts.prompt_column)
    if "category" not in rows.column_names:
        return [(prompt, "") for prompt in rows["user_prompt"]]
    turns = order_rows(rows, "category", curriculum=False, seed=0)
    return list(dict.fromkeys(zip(turns["user_prompt"], turns["category"], strict=True)))


def get_demo_worker(render: RenderConfig, config: DemoConfig) -> tuple[Worker, dict[str, TextReward]]:
    """Return the worker and the text rewards, without those that compare several images of a prompt."""
    rewards = [spec for spec in parse_rewards(config) if spec.least_images == 1]
    if render.worker in ("auto", "spawn"):  # to start a service pays for training only
        render = dataclasses.replace(render, worker="local")
    # Somebody waits for two images, which take no longer than a batch; compiled, they would take as long as one.
    render = dataclasses.replace(render, worker_timeout=render.render_timeout, compile_generator=False)
    worker = get_worker(render, rewards, Path(), 1800, serve_command())  # no ranks wait here
    return worker, load_text_rewards(rewards, render.worker_timeout)


def main(prompts: PromptConfig, render: RenderConfig, config: DemoConfig) -> None:
    try:
        port = find_port(config.host, config.port)
        names = [*dict.fromkeys(config.models), config.model_name_or_path]
        processors = [load_processor(name) for name in names]  # a name that is wrong shows now
        with_image = any(isinstance(processor, ProcessorMixin) for processor in processors)
        examples = load_examples(prompts, config.examples)
        worker, text_rewards = get_demo_worker(render, config)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    choices = [(name, name) for name in dict.fromkeys(config.models)]
    choices.append((f"{config.model_name_or_path} (before training)", config.model_name_or_path))
    page = build_page(choices, examples, worker, text_rewards, config, with_image)
    page.launch(
        server_name=config.host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size="10mb" if with_image else "1kb",
        theme=THEME,
        css=CSS,
    )
    print(f"ready: {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    quiet_libraries()
    main(*parse(PromptConfig, RenderConfig, DemoConfig))
