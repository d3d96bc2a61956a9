"""A trainer with the tiny policy, and a stand-in worker that says what the test needs about each image."""

from concurrent.futures import Future

from conftest import TINY_WORLD
from peft import LoraConfig
from PIL import Image

from brushup.config import PromptEnhancerConfig
from brushup.prompts.dataset import load_prompts
from brushup.render.job import RenderResult
from brushup.rewards.registry import parse_rewards
from brushup.training.trainer import PromptEnhancerTrainer


POLICY = str(TINY_WORLD / "policy")


class StubWorker:
    """Answers each job with `verdict(job)`: a clip score, or the error of the machine. Reads four words as tokens."""

    token_limits = {"words": 4}
    columns: tuple[str, ...] = ()
    seconds: dict[str, float] = {}
    is_remote = False

    def __init__(self, verdict=lambda job: len(job.prompt) % 7 / 7):
        self.verdict = verdict
        self.batches = []

    @property
    def images_drawn(self):
        return sum(map(len, self.batches))

    def submit(self, jobs, return_images=False):
        self.batches.append(jobs)
        future = Future()
        try:
            verdicts = [self.verdict(job) for job in jobs]
            image = Image.new("RGB", (32, 32)) if return_images else None
            future.set_result(
                [
                    RenderResult.failed(verdict)
                    if isinstance(verdict, str)
                    else RenderResult({"clip": verdict}, image, tokens={"words": len(job.prompt.split())})
                    for job, verdict in zip(jobs, verdicts, strict=True)
                ]
            )
        except Exception as error:
            future.set_exception(error)
        return future


def make_trainer(
    tmp_path,
    worker,
    model=POLICY,
    lora=True,
    prompts=TINY_WORLD / "train.jsonl",
    eval_dataset=None,
    trainer_arguments=None,
    **options,
):
    args = PromptEnhancerConfig(
        output_dir=str(tmp_path),
        **{
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 32,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "gradient_checkpointing": False,
            "model_init_kwargs": {"dtype": "float32"} if isinstance(model, str) else None,
            "disable_tqdm": True,
            "use_cpu": True,
            **options,
        },
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return PromptEnhancerTrainer(
        model,
        worker,
        parse_rewards(args, args.reward_weights),
        args,
        eval_dataset=eval_dataset,
        **{"train_dataset": load_prompts(str(prompts)), **(trainer_arguments or {})},
        peft_config=LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM") if lora else None,
    )


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def table(trainer, column):
    return list(trainer._logs["rewards"][column] if column == "clip" else trainer._logs["extra"][column])
