"""A web page: type a prompt, and see the images of it and of its rewrite side by side, with their scores.

With the YAML file of a run, which names the generator and the rewards, and the policy that the run trained:

    pip install -e ".[demo]" && python recipes/demo.py --config recipes/tiny_cpu.yaml --models runs/tiny_cpu

`--models` takes several adapters or models to choose among, folders or Hub ids; the policy before training can always
be chosen, too. `--worker http://127.0.0.1:8100` renders with a service (recipes/serve.py) instead of in this process.
"""

from brushup.flags import answer_at_once, parse


if __name__ == "__main__":  # before the imports below, which take ten seconds
    answer_at_once(__doc__, "PromptConfig", "RenderConfig", "DemoConfig")

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
from dataclasses import dataclass
from pathlib import Path


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
try:
    import gradio as gr
except ImportError:
    sys.exit('recipes/demo.py needs Gradio: pip install -e ".[demo]"')
from PIL import Image
from transformers import ProcessorMixin

from brushup.config import PromptConfig, RenderConfig
from brushup.console import quiet_libraries, serve_command
from brushup.evaluation.arm import text_scores
from brushup.policy.enhancer import Enhancement, PromptEnhancer
from brushup.policy.load import load_processor
from brushup.prompts.dataset import load_prompts, order_rows
from brushup.prompts.images import load_image
from brushup.prompts.template import build_messages
from brushup.recipe_config import DemoConfig
from brushup.render.job import MAX_PROMPT_CHARS, RenderJob, RenderResult, Worker
from brushup.render.service.launch import get_worker
from brushup.rewards.registry import TextReward, load_text_rewards, parse_rewards


logger = logging.getLogger(__name__)

SHOWN = 512  # pixels; smaller images are enlarged, or the browser would blur them
MAX_SEED = 2**32 - 1
MAX_REWRITES = 8
TEMPERATURE_OF_SEVERAL = 0.7  # if the user leaves it at 0, where all rewrites would be alike
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
#scores .better { color: #15803d; } #scores .worse { color: #dc2626; }
.dark #scores .better { color: #4ade80; } .dark #scores .worse { color: #f87171; }
#examples tr > * { text-align: left; justify-content: start; }
"""


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


def problem_with(user_prompt: str, seed: float | None) -> str | None:
    """Return what the user must change before anything can be rendered; None if nothing."""
    if not user_prompt:
        return "The prompt is empty: type what shall be rendered."
    if len(user_prompt) > MAX_PROMPT_CHARS:
        return f"The prompt has {len(user_prompt):,} characters; at most {MAX_PROMPT_CHARS:,} can be rendered."
    if seed is None or not 0 <= seed <= MAX_SEED or seed != int(seed):
        return f"The seed must be a whole number from 0 to {MAX_SEED}."
    return None


def render_and_score(
    worker: Worker, text_rewards: dict[str, TextReward], user_prompt: str, rewrites: list[Enhancement], seed: int
) -> list[RenderResult]:
    """Return the images of the user's prompt and of each rewrite at this seed, with the scores of all rewards."""
    prompts = [user_prompt, *(rewrite.prompt for rewrite in rewrites)]
    jobs = [RenderJob(prompt, user_prompt, seed, for_evaluation=True) for prompt in prompts]
    results = worker.submit(jobs, return_images=True).result()
    rows = [{"user_prompt": user_prompt, "prompt": build_messages(user_prompt)}] * len(prompts)
    tokens = [result.tokens for result in results]
    texts = text_scores(text_rewards, prompts, rows, tokens, [None, *(rewrite.answer for rewrite in rewrites)])
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
        change = "–" if None in pair else _change(pair[1] - pair[0])
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {change} |")
    return "\n".join(lines) if names else ""


def _change(gain: float) -> str:
    kind = "better" if gain >= 0.0005 else "worse" if gain <= -0.0005 else ""
    return f'<span class="{kind}">{gain:+.3f} {kind}</span>' if kind else "0.000"


def remarks_on(
    enhancement: Enhancement, results: list[RenderResult], limits: dict[str, int], max_new_tokens: int
) -> Iterator[str]:
    """Yield what went wrong, or otherwise than a user expects."""
    if enhancement.malformed:
        yield (
            f"The model's answer was no prompt (empty, or not finished within {max_new_tokens} tokens), so your own "
            "prompt was rendered again."
        )
    if enhancement.kept:
        yield "The model keeps your prompt as it is."
    for error in dict.fromkeys(result.error for result in results if result.error):
        yield f"Could not be rendered: {error}"
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
    choice: gr.Radio
    scores: gr.Markdown
    candidates: gr.State


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
                        alt_text=f"{label}, rendered",
                        format="png",
                        interactive=False,
                        elem_id=f"{name}-picture",
                        elem_classes="picture",
                        buttons=["download", "fullscreen"],
                    )
                    text = gr.Textbox(label=label, elem_id=f"{name}-text", buttons=["copy"])
                    sides += [image, text]
        choice = gr.Radio(label="Rewrites, with their scores: choose one", visible=False, elem_id="choice")
        scores = gr.Markdown(elem_id="scores")
    return Outputs(message, comparison, *sides, choice, scores, gr.State([]))


@dataclass
class Comparison:
    """The answer to a click on "Enhance": rewrite, render, score.

    Args:
        outputs: the parts of the page to fill in.
        worker: renders, and computes the image rewards.
        text_rewards: by name.
        config: how policies are asked.
    """

    outputs: Outputs
    worker: Worker
    text_rewards: dict[str, TextReward]
    config: DemoConfig

    def run(
        self, user_prompt: str, seed: float | None, name: str, temperature: float, n: int, image: str | None
    ) -> Iterator[dict]:
        """Yield the new values of outputs, again and again until the comparison is complete.

        Args:
            name: of the model, a folder or Hub id.
            n: rewrites to write.
            image: the file of an image that the policy sees beside the prompt.
        """
        outputs, user_prompt = self.outputs, user_prompt.strip()
        if problem := problem_with(user_prompt, seed):
            yield {outputs.message: paragraphs(problem, problem=True), outputs.comparison: gr.Column(visible=False)}
            return
        seed = int(seed)
        try:
            yield {
                outputs.message: paragraphs(f"Loading {name} ..."),
                outputs.comparison: gr.Column(visible=True),
                outputs.original_text: user_prompt,
                outputs.choice: gr.Radio(visible=False),
                **dict.fromkeys((outputs.original_image, outputs.rewrite_image, outputs.rewrite_text, outputs.scores)),
            }
            enhancer = load_enhancer(name)
            enhancer.ask_as(self.config)
            yield {outputs.message: paragraphs(f"{name} is writing ...")}
            start = time.perf_counter()
            written = enhancer.enhance(
                [user_prompt] * n,
                max_new_tokens=self.config.max_completion_length,
                temperature=temperature or (TEMPERATURE_OF_SEVERAL if n > 1 else 0),
                seed=seed,
                image=load_image(image) if image else None,
            )
            rewrites = list({rewrite.prompt: rewrite for rewrite in written}.values())
            seconds = time.perf_counter() - start
            yield {
                outputs.message: paragraphs(f"{self.worker} is rendering ..."),
                outputs.rewrite_text: rewrites[0].prompt,
            }
            facts = f"Seed {seed}. {f'Of {n} rewrites {len(rewrites)} differ. ' if n > 1 else ''}"
            yield self._render(user_prompt, rewrites, seed, f"{facts}Rewritten by {name} in {seconds:.1f} s")
        except Exception as error:  # in words on the page; the terminal has the rest
            logger.exception("no comparison of %r by %s", user_prompt, name)
            message = paragraphs(str(error) or type(error).__name__, problem=True)
            yield {outputs.message: message, outputs.comparison: gr.Column(visible=False)}

    def _render(self, user_prompt: str, rewrites: list[Enhancement], seed: int, facts: str) -> dict:
        """Return the values that complete the comparison; `facts` begins the message."""
        start = time.perf_counter()
        before, *results = render_and_score(self.worker, self.text_rewards, user_prompt, rewrites, seed)
        if any(result.image for result in (before, *results)):
            facts += f", rendered by {self.worker} in {time.perf_counter() - start:.1f} s"
        remarks = [
            remark
            for rewrite, after in zip(rewrites, results, strict=True)
            for remark in remarks_on(
                rewrite, [before, after], self.worker.token_limits, self.config.max_completion_length
            )
        ]
        remarks += [reward.error for reward in self.text_rewards.values() if reward.error]
        candidates = [
            (rewrite.prompt, enlarged(after.image), table_of(before, after))
            for rewrite, after in zip(rewrites, results, strict=True)
        ]
        choices = [
            (", ".join([rewrite.prompt, *(f"{name} {score:.3f}" for name, score in after.scores.items())]), place)
            for place, (rewrite, after) in enumerate(zip(rewrites, results, strict=True))
        ]
        return {
            self.outputs.message: paragraphs(f"{facts}.") + paragraphs(*dict.fromkeys(remarks), problem=True),
            self.outputs.original_image: enlarged(before.image),
            self.outputs.choice: gr.Radio(choices, value=0, visible=len(choices) > 1),
            self.outputs.candidates: candidates,
            **self.choose(candidates, 0),
        }

    def choose(self, candidates: list[tuple[str, Image.Image | None, str]], place: int) -> dict:
        """Return the values that show the rewrite at this place: (rewrite, image, table of scores) of each."""
        outputs = self.outputs
        shown = (outputs.rewrite_text, outputs.rewrite_image, outputs.scores)
        return dict(zip(shown, candidates[place], strict=True))


def build_inputs(choices: list[tuple[str, str]], with_image: bool) -> list[gr.components.Component]:
    """Add what a user fills in to the page, and return it in the order of `Comparison.run`'s arguments."""
    prompt = gr.Textbox(label="Prompt", placeholder="What shall be rendered?", max_lines=5, autofocus=True)
    with gr.Row():
        model = gr.Dropdown(choices, value=choices[0][1], label="Model", filterable=False, min_width=200)
        temperature = gr.Slider(
            0, 1.5, value=0, step=0.1, label="Temperature (0: likeliest)", min_width=200, buttons=[]
        )
        count = gr.Slider(1, MAX_REWRITES, value=1, step=1, label="Rewrites", min_width=110, buttons=[])
        seed = gr.Number(value=0, label="Seed", min_width=90)
    with gr.Accordion("An image beside the prompt", open=False, visible=with_image):
        # The file as it is: `load_image` reads it as training does.
        image = gr.Image(label="Image", type="filepath", image_mode=None, sources=["upload"], height=200)
    return [prompt, seed, model, temperature, count, image]


def build_page(
    choices: list[tuple[str, str]],
    examples: list[tuple[str, str]],
    worker: Worker,
    text_rewards: dict[str, TextReward],
    config: DemoConfig,
    with_image: bool,
) -> gr.Blocks:
    """Return the page.

    Args:
        choices: (name on the page, folder or Hub id) of each model.
        examples: (prompt, category) of each.
        worker, text_rewards, config: as for `Comparison`.
        with_image: whether it takes an image beside the prompt.
    """
    with gr.Blocks(title="Brushup", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# Brushup\nA model rewrites your prompt. Both are rendered from the same seed, and the images are "
            "scored against what **you** asked for."
        )
        prompt, seed, *others = build_inputs(choices, with_image)
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
        comparison = Comparison(outputs, worker, text_rewards, config)
        compare = {
            "fn": comparison.run,
            "inputs": [prompt, seed, *others],
            "outputs": list(vars(outputs).values()),
            "concurrency_limit": 1,  # models and worker are shared by all who look at the page
            "concurrency_id": "models",
            "show_progress_on": [outputs.original_image, outputs.rewrite_image],
        }
        gr.on([enhance.click, prompt.submit], **compare, api_name="compare")
        # Rendered at once: the images of before would stand beside a prompt or a seed that they are not of.
        drawn = new_seed.click(lambda: random.randint(0, MAX_SEED), outputs=seed, show_progress="hidden")
        drawn.then(**compare, api_visibility="private")
        chosen = gallery.click(lambda example: example[0], gallery, prompt, show_progress="hidden")
        chosen.then(**compare, api_visibility="private")
        outputs.choice.input(
            comparison.choose,
            [outputs.candidates, outputs.choice],
            [outputs.rewrite_text, outputs.rewrite_image, outputs.scores],
            show_progress="hidden",
            api_visibility="private",
        )
    return page


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
