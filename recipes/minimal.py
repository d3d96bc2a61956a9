"""The whole idea in one file, with TRL and diffusers alone. Read it first, then what Brushup adds (README.md).

    python recipes/minimal.py --max_steps 30 --output_dir runs/minimal

Any argument of TRL's `GRPOConfig` is a flag. To launch it with Accelerate:

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/minimal.py --use_cpu true
"""

import open_clip
import torch
from datasets import load_dataset
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from transformers import HfArgumentParser
from trl import GRPOConfig, GRPOTrainer


WORLD = "data/tiny_world"
SCORER = f"local-dir:{WORLD}/scorer"
RENDER = {"num_inference_steps": 6, "guidance_scale": 3.0, "height": 32, "width": 32, "max_sequence_length": 1}
SYSTEM_PROMPT = (  # the one that the tiny policy knows
    "You rewrite a user's request as one prompt for an image generator. Keep everything the user asked for: what it "
    "shows, how many, which colors, sizes and places. Use plain words that the image generator knows, and add what "
    "the user left out. Answer with the prompt alone, in English, whatever language the user writes."
)


class ClipReward:
    """A reward function: render each rewrite, and compare the image with what the user asked for."""

    __name__ = "clip"  # how TRL logs it: rewards/clip/mean

    def __init__(self, device: torch.device):
        options = {"text_encoder_3": None, "tokenizer_3": None, "dtype": torch.float32}  # SD3 without T5
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(f"{WORLD}/generator", **options).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.scorer, self.preprocess = open_clip.create_model_from_pretrained(SCORER, device=device)
        self.tokenizer = open_clip.get_tokenizer(SCORER)
        self.device = device

    @torch.no_grad()
    def __call__(self, completions, user_prompt, trainer_state, **columns) -> list[float]:
        """Return the cosine, -1..1, of each rewrite's image with the user's own prompt, not with the rewrite."""
        rewrites = [messages[0]["content"] for messages in completions]
        # All rewrites of a step start from the same noise, so that rewards differ by the words and not by luck.
        seeds = [torch.Generator().manual_seed(trainer_state.global_step) for _ in rewrites]
        images = self.pipeline(rewrites, generator=seeds, **RENDER).images
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        image_features = self.scorer.encode_image(pixels, normalize=True)
        text_features = self.scorer.encode_text(self.tokenizer(user_prompt).to(self.device), normalize=True)
        return (image_features * text_features).sum(-1).tolist()


def ask_for_rewrite(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Return the chat messages that ask the policy for a rewrite; GRPOTrainer reads them from the column `prompt`."""
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": row["user_prompt"]}]
    return {"prompt": messages}


def main() -> None:
    parser = HfArgumentParser(GRPOConfig)
    parser.set_defaults(output_dir="runs/minimal", max_steps=30, logging_steps=1, report_to="none", bf16=False)
    parser.set_defaults(per_device_train_batch_size=32, num_generations=8, max_completion_length=32)  # 4 prompts x 8
    parser.set_defaults(learning_rate=2e-3, activation_checkpointing=False, model_init_kwargs={"dtype": "float32"})
    (args,) = parser.parse_args_into_dataclasses()
    prompts = load_dataset("json", data_files=f"{WORLD}/train.jsonl", split="train").map(ask_for_rewrite)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = GRPOTrainer(
        f"{WORLD}/policy", reward_funcs=ClipReward(args.device), args=args, train_dataset=prompts, peft_config=lora
    )
    trainer.train()
    trainer.save_model()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    quarter = max(1, len(rewards) // 4)
    first, last = (sum(part) / quarter for part in (rewards[:quarter], rewards[-quarter:]))
    print(f"Mean reward of the first {quarter} logged steps: {first:.3f}, of the last {quarter}: {last:.3f}")


if __name__ == "__main__":
    main()
