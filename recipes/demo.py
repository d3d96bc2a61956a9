"""A web page: type a prompt and see what is drawn of it and of its rewrite, side by side, with their scores.

With the YAML file of the run, which names the generator and the rewards, and what the run trained:

    pip install -e ".[demo]" && python recipes/demo.py --config recipes/tiny_cpu.yaml --models runs/tiny_cpu

`--models` takes several adapters or models to choose among, folders or Hub ids; the policy before training is always
one more. `--worker http://127.0.0.1:8100` draws with a service (recipes/serve.py) instead of in this process.
"""

import dataclasses
import functools
import html
import logging
import os
import random
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
try:
    import gradio as gr
except ImportError:
    sys.exit('recipes/demo.py needs Gradio: pip install -e ".[demo]"')
from PIL import Image
from trl import TrlParser

from brushup.client import HttpWorker, connect
from brushup.config import RenderConfig, RewardConfig
from brushup.console import quiet_libraries
from brushup.data import load_prompts, order_rows
from brushup.enhancer import Enhancement, PromptEnhancer
from brushup.evaluation import load_text_rewards, text_scores
from brushup.prompts import build_messages
from brushup.protocol import MAX_PROMPT_CHARS
from brushup.rewards import least_pictures
from brushup.worker import LocalWorker, RenderJob, RenderResult, load_worker


logger = logging.getLogger(__name__)

SHOWN = 512  # pixels; smaller pictures are enlarged, or the browser would blur them
MAX_SEED = 2**32 - 1
EXAMPLES_A_PAGE = 14  # as many as the categories of data/challenging.jsonl
THEME = gr.themes.Default(  # the browser's own fonts: nothing comes from another site
    primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
CSS = """
.gradio-container { max-width: 960px !important; margin: 0 auto; }
.picture { aspect-ratio: 1; }
.picture img { object-fit: contain; }
#message p { margin: 0 0 6px; overflow-wrap: anywhere; }
#message .problem { padding: 8px 12px; border-left: 4px solid #dc2626; background: var(--background-fill-secondary); }
#scores table { width: 100%; border: 0; font-size: var(--text-sm); }
#scores tr { border: 0; }
#scores tr > * { border: 0; border-bottom: 1px solid var(--border-color-primary); padding: 6px; text-align: right;
  overflow-wrap: normal; word-break: normal; font-variant-numeric: tabular-nums; }
#scores tr > :first-child { text-align: left; overflow-wrap: anywhere; }
#examples tr > * { text-align: left; justify-content: start; }
"""


@dataclass
class DemoConfig(RewardConfig):
    """What the page reads from the YAML file of a run, and what it takes besides."""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "The trained policies to choose among: adapters or models, folders or Hub ids."},
    )
    model_name_or_path: str = field(kw_only=True, metadata={"help": "The policy before training."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens that an answer may have."})
    validation_prompts: str = field(kw_only=True, metadata={"help": "The run's held-out prompts: see `examples`."})
    prompt_column: str = field(default="user_prompt", metadata={"help": "The column with the user's prompt."})
    examples: str | None = field(
        default=None,
        metadata={
            "help": "Prompts to try: a file, or a Hub data set (its split `validation`); default: challenging.jsonl "
            "beside the run's `validation_prompts`, else these."
        },
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; whoever can reach it can use the page."}
    )
    port: int = field(default=7860, metadata={"help": "Port to listen on; 0: any that is free."})


def find_port(host: str, port: int) -> int:
    """The port, a free one for 0; raises a ValueError if it can't be had."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else one that was just in use is refused
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"can't listen on {host}:{port} ({error}); --port 0 takes any that is free") from error
        return probe.getsockname()[1]


def get_worker(render: RenderConfig, rewards: RewardConfig) -> LocalWorker | HttpWorker:
    """The service at the address that `worker` names, else one in this process; the others are for training."""
    if re.match(r"https?://", render.worker):
        # It draws two pictures at a time, and somebody sits and waits for them.
        return connect(render.worker, dataclasses.replace(render, worker_timeout=render.render_timeout), rewards)
    if render.worker not in ("local", "auto", "spawn"):
        raise ValueError(f"worker: {render.worker!r} is neither local nor http://host:port")
    return load_worker(render, rewards)


@functools.cache  # loaded when it is first chosen; then it stays
def load_enhancer(name: str) -> PromptEnhancer:
    """Raises a RuntimeError that says which model can't be loaded, and why."""
    try:
        return PromptEnhancer.from_pretrained(name)
    except Exception as error:
        raise RuntimeError(f"The model {name} cannot be loaded, as a folder or from the Hub. {error}") from error


def load_examples(config: DemoConfig) -> list[tuple[str, str]]:
    """(prompt, category) of each example; the categories take turns."""
    beside = Path(config.validation_prompts).with_name("challenging.jsonl")
    source = config.examples or (str(beside) if beside.is_file() else config.validation_prompts)
    rows = load_prompts(source, "validation", config.prompt_column)
    if "category" not in rows.column_names:
        return [(prompt, "") for prompt in rows["user_prompt"]]
    turns = order_rows(rows, "category", curriculum=False, seed=0)
    return list(dict.fromkeys(zip(turns["user_prompt"], turns["category"], strict=True)))


def problem_with(asked: str, seed: int | None) -> str | None:
    """What has to be changed before anything can be drawn."""
    if not asked:
        return "The prompt is empty: type what shall be drawn."
    if len(asked) > MAX_PROMPT_CHARS:
        return f"The prompt has {len(asked):,} characters; at most {MAX_PROMPT_CHARS:,} can be drawn."
    if seed is None or not 0 <= seed <= MAX_SEED:
        return f"The seed must be a whole number from 0 to {MAX_SEED}."
    return None


def draw_and_score(
    worker: LocalWorker | HttpWorker, text_rewards: dict[str, Callable], enhancement: Enhancement, seed: int
) -> list[RenderResult]:
    """Of the user's prompt and of the rewrite: the picture at this seed, with the scores of all rewards."""
    prompts = [enhancement.user_prompt, enhancement.prompt]
    results = worker.score([RenderJob(prompt, prompts[0], seed) for prompt in prompts], return_images=True)
    rows = [{"user_prompt": prompts[0], "prompt": build_messages(prompts[0])}] * 2
    tokens = [result.tokens for result in results]
    texts = text_scores(text_rewards, prompts, rows, tokens, [None, enhancement.answer])
    for result, scores in zip(results, texts, strict=True):
        result.scores |= scores
    return results


def table_of(before: RenderResult, after: RenderResult) -> str:
    """Markdown: a line a reward; empty if nothing could be scored."""
    names = before.scores | after.scores
    lines = ["| score | prompt | rewrite | change |", "| :-- | --: | --: | --: |"]
    for name in names:
        pair = before.scores.get(name), after.scores.get(name)
        cells = ["–" if score is None else f"{score:.3f}" for score in pair]
        change = "–" if None in pair else f"{pair[1] - pair[0]:+.3f}"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {change} |")
    return "\n".join(lines) if names else ""


def remarks_on(
    enhancement: Enhancement, results: list[RenderResult], limits: dict[str, int], max_new_tokens: int
) -> Iterator[str]:
    """What went wrong, or not as one would think."""
    if enhancement.fell_back:
        yield (
            f"The model's answer was no prompt (empty, or not finished within {max_new_tokens} tokens), so your own "
            "prompt was drawn again."
        )
    for error in dict.fromkeys(result.error for result in results if result.error):
        yield f"Could not be drawn: {error}"
    for what, result in zip(("Your prompt", "The rewrite"), results, strict=True):
        for name, limit in limits.items():
            if result.tokens.get(name, 0) > limit:
                yield f"{what} has {result.tokens[name]} {name} tokens; the generator reads the first {limit} only."


def enlarged(image: Image.Image | None) -> Image.Image | None:
    """The picture with each pixel as a square, if it is small."""
    times = -(-SHOWN // max(image.size)) if image else 1
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST) if times > 1 else image


def said(*lines: str, problem: bool = False) -> str:
    kind = ' class="problem" role="alert"' if problem else ""
    return "".join(f"<p{kind}>{html.escape(line)}</p>" for line in lines)


def build_page(
    choices: list[tuple[str, str]],
    examples: list[tuple[str, str]],
    worker: LocalWorker | HttpWorker,
    text_rewards: dict[str, Callable],
    max_new_tokens: int,
) -> gr.Blocks:
    """The page.

    Args:
        choices: (what it is called, folder or Hub id) of each model.
        examples: (prompt, category) of each.
    """
    with gr.Blocks(title="Brushup", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# Brushup\nA model rewrites your prompt. Both are drawn from the same seed, and both pictures are scored "
            "against what **you** asked for."
        )
        prompt = gr.Textbox(label="Prompt", placeholder="What shall be drawn?", max_lines=5, autofocus=True)
        with gr.Row():
            model = gr.Dropdown(choices, value=choices[0][1], label="Model", filterable=False, min_width=280)
            temperature = gr.Slider(
                0, 1.5, value=0, step=0.1, label="Temperature (0: likeliest)", min_width=240, buttons=[]
            )
            seed = gr.Number(value=0, precision=0, label="Seed")
        with gr.Row():
            enhance = gr.Button("Enhance", variant="primary", scale=4, min_width=180)
            new_seed = gr.Button("New seed", scale=1, min_width=120)
        message = gr.HTML(elem_id="message")
        sides = []
        with gr.Column(visible=False) as comparison:
            with gr.Row():
                for label, name in (("Your prompt", "original"), ("Rewrite", "rewrite")):
                    with gr.Column(min_width=140):
                        picture = gr.Image(
                            show_label=False,
                            alt_text=f"{label}, drawn",
                            format="png",
                            interactive=False,
                            elem_id=f"{name}-picture",
                            elem_classes="picture",
                            buttons=["download", "fullscreen"],
                        )
                        text = gr.Textbox(label=label, elem_id=f"{name}-text", buttons=["copy"])
                        sides.append((picture, text))
            scores = gr.Markdown(elem_id="scores")
        (original_picture, original_text), (rewrite_picture, rewrite_text) = sides
        gallery = gr.Dataset(
            label="Examples",
            components=["textbox", "textbox"],
            headers=["prompt", "category"],
            samples=[list(example) for example in examples],
            samples_per_page=EXAMPLES_A_PAGE,
            elem_id="examples",
        )

        def compare(asked: str, name: str, temperature: float, seed: int | None) -> Iterator[dict]:
            asked = asked.strip()
            if problem := problem_with(asked, seed):
                yield {message: said(problem, problem=True), comparison: gr.Column(visible=False)}
                return
            try:
                yield {
                    message: said(f"Loading {name} ..."),
                    comparison: gr.Column(visible=True),
                    original_text: asked,
                    **dict.fromkeys((original_picture, rewrite_picture, rewrite_text, scores)),
                }
                enhancer = load_enhancer(name)
                yield {message: said(f"{name} is writing ...")}
                start = time.perf_counter()
                enhancement = enhancer.enhance(
                    asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
                )
                written = time.perf_counter()
                yield {message: said(f"{worker} is drawing ..."), rewrite_text: enhancement.prompt}
                results = draw_and_score(worker, text_rewards, enhancement, seed)
                drawn = time.perf_counter()
                facts = f"Seed {seed}. Rewritten by {name} in {written - start:.1f} s"
                if any(result.image for result in results):
                    facts += f", drawn by {worker} in {drawn - written:.1f} s"
                remarks = remarks_on(enhancement, results, worker.token_limits, max_new_tokens)
                yield {
                    message: said(f"{facts}.") + said(*remarks, problem=True),
                    original_picture: enlarged(results[0].image),
                    rewrite_picture: enlarged(results[1].image),
                    scores: table_of(*results),
                }
            except Exception as error:  # in words on the page; the terminal has the rest
                logger.exception("no comparison of %r by %s", asked, name)
                words = str(error) or type(error).__name__
                yield {message: said(words, problem=True), comparison: gr.Column(visible=False)}

        # One at a time: models and worker are shared by all who look at the page.
        gr.on(
            [enhance.click, prompt.submit],
            compare,
            [prompt, model, temperature, seed],
            [message, comparison, original_picture, original_text, rewrite_picture, rewrite_text, scores],
            concurrency_limit=1,
            show_progress_on=[original_picture, rewrite_picture],
        )
        new_seed.click(lambda: random.randint(0, MAX_SEED), outputs=seed, show_progress="hidden")
        gallery.click(lambda example: example[0], gallery, prompt, show_progress="hidden")
    return page


def main(render: RenderConfig, config: DemoConfig) -> None:
    try:
        # One picture of each prompt is shown: what compares several has nothing to say.
        config.reward_funcs = [name for name in config.reward_funcs if least_pictures(name) == 1]
        port = find_port(config.host, config.port)
        examples = load_examples(config)
        text_rewards = load_text_rewards(config)
        worker = get_worker(render, config)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    choices = [(name, name) for name in dict.fromkeys(config.models)]
    choices.append((f"{config.model_name_or_path} (before training)", config.model_name_or_path))
    page = build_page(choices, examples, worker, text_rewards, config.max_completion_length)
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
        max_file_size="1kb",  # the page takes none
        theme=THEME,
        css=CSS,
    )
    print(f"ready: {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    quiet_libraries()
    parser = TrlParser((RenderConfig, DemoConfig))
    # The YAML file also has what only training reads; a flag that nobody knows is an error.
    *configs, _, unknown = parser.parse_args_and_config(return_remaining_strings=True, separate_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    main(*configs)
