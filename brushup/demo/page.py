"""The page of the demo: its parts, and what a click does."""

import random

import gradio as gr

from brushup.demo.comparison import Comparison, Outputs
from brushup.demo.wording import MAX_SEED
from brushup.recipe_config import DemoConfig
from brushup.render.job import Worker
from brushup.rewards.registry import TextReward


MAX_REWRITES = 8
EXAMPLES_A_PAGE = 14  # as many as the categories of data/challenging.jsonl
THEME = gr.themes.Default(  # fonts of the browser, so that nothing comes from another site
    primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
CSS = """
.gradio-container { max-width: 960px !important; margin: 0 auto; }
.picture { aspect-ratio: 1; }
.picture img { object-fit: contain; }
#message p, #changes p { margin: 0 0 6px; overflow-wrap: anywhere; }
#message .problem { padding: 8px 12px; border-left: 4px solid #dc2626; background: var(--background-fill-secondary); }
#scores table { width: 100%; border: 0; font-size: var(--text-sm); }
#scores tr { border: 0; }
#scores tr > * { border: 0; border-bottom: 1px solid var(--border-color-primary); padding: 6px; text-align: right;
  overflow-wrap: normal; word-break: normal; font-variant-numeric: tabular-nums; }
#scores tr > :first-child { text-align: left; overflow-wrap: anywhere; }
#scores .better, #changes ins { color: #15803d; } #scores .worse, #changes del { color: #dc2626; }
.dark #scores .better, .dark #changes ins { color: #4ade80; }
.dark #scores .worse, .dark #changes del { color: #f87171; }
#changes ins { font-weight: 600; }
#examples tr > * { text-align: left; justify-content: start; }
"""


def build_outputs() -> Outputs:
    """Add the parts that show a comparison to the page."""
    message = gr.HTML(elem_id="message")
    with gr.Column(visible=False) as comparison:
        with gr.Row():
            sides = [*_side("Your prompt", "original"), *_side("Rewrite", "rewrite")]
            with gr.Column(min_width=140, visible=False) as revised:
                revision = _picture("Revision", "revision")
        changes = gr.HTML(elem_id="changes")
        choice = gr.Radio(label="Rewrites, with their scores: choose one", visible=False, elem_id="choice")
        scores = gr.Markdown(elem_id="scores")
    return Outputs(message, comparison, *sides, revised, *revision, changes, choice, scores, gr.State([]))


def _side(label: str, name: str) -> tuple[gr.Image, gr.Textbox]:
    with gr.Column(min_width=140):
        return _picture(label, name)


def _picture(label: str, name: str) -> tuple[gr.Image, gr.Textbox]:
    image = gr.Image(
        show_label=False,
        alt_text=f"{label}, rendered",
        format="png",
        interactive=False,
        elem_id=f"{name}-picture",
        elem_classes="picture",
        buttons=["download", "fullscreen"],
    )
    return image, gr.Textbox(label=label, elem_id=f"{name}-text", buttons=["copy"])


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
    revise = gr.Checkbox(label="Look at the image of the rewrite, and revise it", visible=with_image)
    with gr.Accordion("An image beside the prompt", open=False, visible=with_image):
        # The file as it is: `load_image` reads it as training does.
        image = gr.Image(label="Image", type="filepath", image_mode=None, sources=["upload"], height=200)
    return [prompt, seed, model, temperature, count, revise, image]


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
        with_image: whether a model reads images, too: that beside the prompt, and those of rewrites.
    """
    with gr.Blocks(title="Brushup", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# Brushup\nA model rewrites your prompt. All are rendered from the same seed, and the images are "
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
            "show_progress_on": [outputs.original_image, outputs.rewrite_image, outputs.revision_image],
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
            list(comparison.chosen),
            show_progress="hidden",
            api_visibility="private",
        )
    return page
