"""A web page: type a prompt, and see the images of it and of its rewrite side by side, with their scores.

With the YAML file of a run, which names the generator and the rewards, and the policy that the run trained:

    pip install -e ".[demo]" && python recipes/demo.py --config recipes/tiny_cpu.yaml --models runs/tiny_cpu

`--models` takes several adapters or models to choose among, folders or Hub ids; the policy before training can always
be chosen, too. `--worker http://127.0.0.1:8100` renders with a service (recipes/serve.py) instead of in this process.
"""

import dataclasses
import functools
import html
import logging
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
try:
    import gradio as gr
except ImportError:
    sys.exit('recipes/demo.py needs Gradio: pip install -e ".[demo]"')
from PIL import Image
from trl import TrlParser

from brushup.config import PromptConfig, RenderConfig, RewardConfig
from brushup.console import quiet_libraries, serve_command
from brushup.evaluation.arm import text_scores
from brushup.policy.enhancer import Enhancement, PromptEnhancer
from brushup.prompts.dataset import load_prompts, order_rows
from brushup.prompts.template import build_messages
from brushup.render.job import MAX_PROMPT_CHARS, RenderJob, RenderResult, Worker
from brushup.render.service.launch import get_worker
from brushup.rewards.registry import TextReward, load_text_rewards, parse_rewards


logger = logging.getLogger(__name__)

SHOWN = 512  # pixels; smaller images are enlarged, or the browser would blur them
MAX_SEED = 2**32 - 1
EXAMPLES_A_PAGE = 14  # as many as the categories of data/challenging.jsonl
THEME = gr.themes.Default(  # fonts of the browser, so that nothing comes from another site
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
    """The settings of a run that the page reads from its YAML file, and the page's own."""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "The trained policies to choose among: adapters or models, folders or Hub ids."},
    )
    model_name_or_path: str = field(kw_only=True, metadata={"help": "The policy before training."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens that an answer may have."})
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
    """Return the port, a free one for 0; raise a ValueError if the page cannot listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else one that was just in use is refused
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"can't listen on {host}:{port} ({error}); --port 0 takes any that is free") from error
        return probe.getsockname()[1]


@functools.cache  # a model is loaded when it is first chosen, and then kept
def load_enhancer(name: str) -> PromptEnhancer:
    """Load the policy; raise a RuntimeError that says which model cannot be loaded, and why."""
    try:
        return PromptEnhancer.from_pretrained(name)
    except Exception as error:
        raise RuntimeError(f"The model {name} cannot be loaded, as a folder or from the Hub. {error}") from error


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


def problem_with(user_prompt: str, seed: int | None) -> str | None:
    """Return what the user must change before anything can be rendered; None if nothing."""
    if not user_prompt:
        return "The prompt is empty: type what shall be drawn."
    if len(user_prompt) > MAX_PROMPT_CHARS:
        return f"The prompt has {len(user_prompt):,} characters; at most {MAX_PROMPT_CHARS:,} can be drawn."
    if seed is None or not 0 <= seed <= MAX_SEED:
        return f"The seed must be a whole number from 0 to {MAX_SEED}."
    return None


def render_and_score(
    worker: Worker, text_rewards: dict[str, TextReward], enhancement: Enhancement, seed: int
) -> list[RenderResult]:
    """Return the images of the user's prompt and of the rewrite at this seed, with the scores of all rewards."""
    prompts = [enhancement.user_prompt, enhancement.prompt]
    jobs = [RenderJob(prompt, prompts[0], seed) for prompt in prompts]
    results = worker.submit(jobs, return_images=True).result()
    rows = [{"user_prompt": prompts[0], "prompt": build_messages(prompts[0])}] * 2
    tokens = [result.tokens for result in results]
    texts = text_scores(text_rewards, prompts, rows, tokens, [None, enhancement.answer])
    for result, scores in zip(results, texts, strict=True):
        result.scores |= scores
    return results


def table_of(before: RenderResult, after: RenderResult) -> str:
    """Return a Markdown table with a line for each reward; empty if nothing could be scored."""
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
    """Yield what went wrong, or otherwise than a user expects."""
    if enhancement.malformed:
        yield (
            f"The model's answer was no prompt (empty, or not finished within {max_new_tokens} tokens), so your own "
            "prompt was drawn again."
        )
    for error in dict.fromkeys(result.error for result in results if result.error):
        yield f"Could not be drawn: {error}"
    for subject, result in zip(("Your prompt", "The rewrite"), results, strict=True):
        for name, limit in limits.items():
            if result.tokens.get(name, 0) > limit:
                yield f"{subject} has {result.tokens[name]} {name} tokens; the generator reads the first {limit} only."


def enlarged(image: Image.Image | None) -> Image.Image | None:
    """Return the image, with each pixel as a square if it is smaller than `SHOWN`."""
    times = -(-SHOWN // max(image.size)) if image else 1
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST) if times > 1 else image


def paragraphs(*lines: str, problem: bool = False) -> str:
    """Return the lines as HTML; problems get a red bar."""
    kind = ' class="problem" role="alert"' if problem else ""
    return "".join(f"<p{kind}>{html.escape(line)}</p>" for line in lines)


@dataclass
class Outputs:
    """The parts of the page that a comparison fills in."""

    message: gr.HTML
    comparison: gr.Column
    original_image: gr.Image
    original_text: gr.Textbox
    rewrite_image: gr.Image
    rewrite_text: gr.Textbox
    scores: gr.Markdown


def build_outputs() -> Outputs:
    """Add the parts that show a comparison to the page."""
    message = gr.HTML(elem_id="message")
    sides = []
    with gr.Column(visible=False) as comparison:
        with gr.Row():
            for label, name in (("Your prompt", "original"), ("Rewrite", "rewrite")):
                with gr.Column(min_width=140):
                    image = gr.Image(
                        show_label=False,
                        alt_text=f"{label}, drawn",
                        format="png",
                        interactive=False,
                        elem_id=f"{name}-picture",
                        elem_classes="picture",
                        buttons=["download", "fullscreen"],
                    )
                    text = gr.Textbox(label=label, elem_id=f"{name}-text", buttons=["copy"])
                    sides += [image, text]
        scores = gr.Markdown(elem_id="scores")
    return Outputs(message, comparison, *sides, scores)


@dataclass
class Comparison:
    """The answer to a click on "Enhance": rewrite, render, score.

    Args:
        outputs: the parts of the page to fill in.
        worker: renders, and computes the image rewards.
        text_rewards: by name.
        max_new_tokens: that an answer of the policy may have.
    """

    outputs: Outputs
    worker: Worker
    text_rewards: dict[str, TextReward]
    max_new_tokens: int

    def run(self, user_prompt: str, name: str, temperature: float, seed: int | None) -> Iterator[dict]:
        """Yield the new values of outputs, again and again until the comparison is complete.

        Args:
            name: of the model, a folder or Hub id.
        """
        outputs, user_prompt = self.outputs, user_prompt.strip()
        if problem := problem_with(user_prompt, seed):
            yield {outputs.message: paragraphs(problem, problem=True), outputs.comparison: gr.Column(visible=False)}
            return
        try:
            yield {
                outputs.message: paragraphs(f"Loading {name} ..."),
                outputs.comparison: gr.Column(visible=True),
                outputs.original_text: user_prompt,
                **dict.fromkeys((outputs.original_image, outputs.rewrite_image, outputs.rewrite_text, outputs.scores)),
            }
            enhancer = load_enhancer(name)
            yield {outputs.message: paragraphs(f"{name} is writing ...")}
            start = time.perf_counter()
            enhancement = enhancer.enhance(
                user_prompt, max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed
            )
            seconds = time.perf_counter() - start
            yield {
                outputs.message: paragraphs(f"{self.worker} is drawing ..."),
                outputs.rewrite_text: enhancement.prompt,
            }
            yield self._render(enhancement, seed, f"Seed {seed}. Rewritten by {name} in {seconds:.1f} s")
        except Exception as error:  # in words on the page; the terminal has the rest
            logger.exception("no comparison of %r by %s", user_prompt, name)
            message = paragraphs(str(error) or type(error).__name__, problem=True)
            yield {outputs.message: message, outputs.comparison: gr.Column(visible=False)}

    def _render(self, enhancement: Enhancement, seed: int, facts: str) -> dict:
        """Return the values that complete the comparison; `facts` begins the message."""
        start = time.perf_counter()
        results = render_and_score(self.worker, self.text_rewards, enhancement, seed)
        if any(result.image for result in results):
            facts += f", drawn by {self.worker} in {time.perf_counter() - start:.1f} s"
        remarks = [*remarks_on(enhancement, results, self.worker.token_limits, self.max_new_tokens)]
        remarks += [reward.error for reward in self.text_rewards.values() if reward.error]
        return {
            self.outputs.message: paragraphs(f"{facts}.") + paragraphs(*remarks, problem=True),
            self.outputs.original_image: enlarged(results[0].image),
            self.outputs.rewrite_image: enlarged(results[1].image),
            self.outputs.scores: table_of(*results),
        }


def build_page(
    choices: list[tuple[str, str]],
    examples: list[tuple[str, str]],
    worker: Worker,
    text_rewards: dict[str, TextReward],
    max_new_tokens: int,
) -> gr.Blocks:
    """Return the page.

    Args:
        choices: (name on the page, folder or Hub id) of each model.
        examples: (prompt, category) of each.
        worker, text_rewards, max_new_tokens: as for `Comparison`.
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
        outputs = build_outputs()
        gallery = gr.Dataset(
            label="Examples",
            components=["textbox", "textbox"],
            headers=["prompt", "category"],
            samples=[list(example) for example in examples],
            samples_per_page=EXAMPLES_A_PAGE,
            elem_id="examples",
        )
        gr.on(
            [enhance.click, prompt.submit],
            Comparison(outputs, worker, text_rewards, max_new_tokens).run,
            [prompt, model, temperature, seed],
            list(vars(outputs).values()),
            api_name="compare",
            concurrency_limit=1,  # models and worker are shared by all who look at the page
            show_progress_on=[outputs.original_image, outputs.rewrite_image],
        )
        new_seed.click(lambda: random.randint(0, MAX_SEED), outputs=seed, show_progress="hidden")
        gallery.click(lambda example: example[0], gallery, prompt, show_progress="hidden")
    return page


def get_demo_worker(render: RenderConfig, config: DemoConfig) -> tuple[Worker, dict[str, TextReward]]:
    """Return the worker and the text rewards, without those that compare several images of a prompt."""
    rewards = [spec for spec in parse_rewards(config) if spec.least_images == 1]
    if render.worker in ("auto", "spawn"):  # to start a service pays for training only
        render = dataclasses.replace(render, worker="local")
    # Two images take no longer than a batch, and somebody waits for them.
    render = dataclasses.replace(render, worker_timeout=render.render_timeout)
    worker = get_worker(render, rewards, Path(), 1800, serve_command())  # no ranks wait here
    return worker, load_text_rewards(rewards)


def main(prompts: PromptConfig, render: RenderConfig, config: DemoConfig) -> None:
    try:
        port = find_port(config.host, config.port)
        examples = load_examples(prompts, config.examples)
        worker, text_rewards = get_demo_worker(render, config)
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
    parser = TrlParser((PromptConfig, RenderConfig, DemoConfig))
    # The YAML file also has what only training reads; a flag that nobody knows is an error.
    *configs, _, unknown = parser.parse_args_and_config(return_remaining_strings=True, separate_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    main(*configs)
