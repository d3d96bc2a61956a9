"""The whole idea in one file, with TRL and diffusers alone. Read it first, then what Brushup adds (README.md).

python recipes/minimal.py --max_steps 30 --output_dir runs/minimal
"""

import argparse


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--max_steps", type=int, default=30, help="optimizer steps, of 4 prompts x 8 rewrites (30)")
parser.add_argument("--output_dir", default="runs/minimal", help="where the adapter goes (runs/minimal)")
options = parser.parse_args()  # before the imports below, which take ten seconds

import open_clip
import torch
from datasets import load_dataset
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer


WORLD = "data/tiny_world"
SCORER = f"local-dir:{WORLD}/scorer"
RENDER = {"num_inference_steps": 6, "guidance_scale": 3.0, "height": 48, "width": 48, "max_sequence_length": 1}
SYSTEM_PROMPT = (  # the one that the tiny policy knows
    "You rewrite a user's request as one prompt for an image generator. Keep everything the user asked for: what it "
    "shows, how many, which colors, sizes and places. Use plain words that the image generator knows, and add what "
    "the user left out. Answer with the prompt alone, in English, whatever language the user writes; or with the word "
    "KEEP, if the request is such a prompt already."
)

args = GRPOConfig(
    **{"output_dir": options.output_dir, "max_steps": options.max_steps, "logging_steps": 1, "report_to": "none"},
    **{"per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 32, "learning_rate": 2e-3},
    **{"bf16": False, "activation_checkpointing": False, "model_init_kwargs": {"dtype": "float32"}},
)
no_t5 = {"text_encoder_3": None, "tokenizer_3": None, "dtype": torch.float32}
pipeline = StableDiffusion3Pipeline.from_pretrained(f"{WORLD}/generator", **no_t5).to(args.device)
pipeline.set_progress_bar_config(disable=True)
scorer, preprocess = open_clip.create_model_from_pretrained(SCORER, device=args.device)
tokenizer = open_clip.get_tokenizer(SCORER)


@torch.no_grad()
def clip(completions, user_prompt, trainer_state, **columns) -> list[float]:
    """Return the cosine, -1..1, of each rewrite's image with the user's own prompt, not with the rewrite."""
    answers = [messages[0]["content"] for messages in completions]
    rewrites = [own if answer == "KEEP" else answer for answer, own in zip(answers, user_prompt, strict=True)]
    # All rewrites of a step start from the same noise, so that rewards differ by the words and not by luck.
    seeds = [torch.Generator().manual_seed(trainer_state.global_step) for _ in rewrites]
    images = pipeline(rewrites, generator=seeds, **RENDER).images
    pixels = torch.stack([preprocess(image) for image in images]).to(args.device)
    image_features = scorer.encode_image(pixels, normalize=True)
    text_features = scorer.encode_text(tokenizer(user_prompt).to(args.device), normalize=True)
    return (image_features * text_features).sum(-1).tolist()


def ask_for_rewrite(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Return the chat messages that ask the policy for a rewrite; GRPOTrainer reads them from the column `prompt`."""
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": row["user_prompt"]}]
    return {"prompt": messages}


prompts = load_dataset("json", data_files=f"{WORLD}/train.jsonl", split="train").map(ask_for_rewrite)
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = GRPOTrainer(f"{WORLD}/policy", reward_funcs=clip, args=args, train_dataset=prompts, peft_config=lora)
trainer.train()
trainer.save_model()
trainer.save_state()
rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
quarter = max(1, len(rewards) // 4)
first, last = (sum(part) / quarter for part in (rewards[:quarter], rewards[-quarter:]))
print(f"Mean reward of the first {quarter} logged steps: {first:.3f}, of the last {quarter}: {last:.3f}")
