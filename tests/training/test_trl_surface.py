"""The parts of TRL and transformers that the trainer relies on: moving the pin shows here what moved."""

import importlib.metadata
import inspect
import tomllib

import pytest
from conftest import REPOSITORY
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from brushup.training.trainer import PromptEnhancerTrainer
from support.training import StubWorker, make_trainer


OVERRIDDEN = {
    "get_batch_samples": "(self, epoch_iterator: collections.abc.Iterator, num_batches: int, device: torch.device) "
    "-> tuple[list, torch.Tensor | int | None]",
    "_generate_and_score_completions": "(self, inputs: list[dict[str, torch.Tensor | typing.Any]]) "
    "-> dict[str, torch.Tensor | typing.Any]",
    "_generate": "(self, prompts: list)",
    "_calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "evaluate": "(self, eval_dataset: torch.utils.data.dataset.Dataset | dict[str, torch.utils.data.dataset.Dataset] "
    "| None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = 'eval') -> dict[str, float]",
    "save_model": "(self, output_dir: str | None = None, _internal_call: bool = False) -> None",
    "create_model_card": "(self, model_name: str | None = None, dataset_name: str | None = None, "
    "tags: str | list[str] | None = None)",
}
CALLED = {
    "_log_metric": "(self, name: str, value: float)",
    "_log_completion_extra": "(self, column: str, values: list)",
    "_save_checkpoint": "(self, model, trial)",
    "_prepare_inputs": "(self, generation_batch: dict[str, torch.Tensor | typing.Any]) "
    "-> dict[str, torch.Tensor | typing.Any]",
}
ATTRIBUTES = (
    *("_step", "_tokenizer", "_dist", "eos_token_ids", "mask_truncated_completions", "num_iterations", "temperature"),
    *("generation_config", "generation_kwargs", "use_vllm", "use_transformers_continuous_batching", "reward_weights"),
    *("reward_funcs", "model_wrapped", "processing_class", "_logs", "_metrics"),
)
GENERATE_RETURNS = (
    "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images"
)


def test_the_pin_is_what_is_installed():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"trl=={importlib.metadata.version('trl')}" in project["dependencies"]


@pytest.mark.parametrize(("name", "signature"), [*OVERRIDDEN.items(), *CALLED.items()])
def test_a_method_has_its_signature(name, signature):
    assert str(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name)))) == signature


def test_these_methods_are_overridden_and_no_others():
    inherited = {name for parent in PromptEnhancerTrainer.__mro__[1:] for name in vars(parent)}
    ours = {name for name, value in vars(PromptEnhancerTrainer).items() if inspect.isfunction(value)}
    assert ours & inherited - {"__init__"} == set(OVERRIDDEN) and len(OVERRIDDEN) <= 7


def test_only_training_knows_grpo_trainer():
    files = [file for file in (REPOSITORY / "brushup").rglob("*.py") if "GRPOTrainer" in file.read_text()]
    assert {file.parent.name for file in files} == {"training"}


def test_a_trainer_has_the_attributes(tmp_path):
    trainer = make_trainer(tmp_path, StubWorker())
    assert [name for name in ATTRIBUTES if not hasattr(trainer, name)] == []


def test_generate_returns_the_tuple_that_is_kept():
    assert GENERATE_RETURNS in inspect.getsource(GRPOTrainer._generate)


def test_generate_is_called_once_a_batch_and_rewards_are_gathered_once():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert source.count("self._generate(prompts)") == source.count("self._calculate_rewards(") == 1
    assert inspect.getsource(GRPOTrainer._calculate_rewards).count("gather(rewards_per_func)") == 1


def test_token_losses_divide_by_num_items_in_batch_as_the_trainer_expects():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes' in source
    assert "normalizer * self.current_gradient_accumulation_steps / self.args.steps_per_generation" in source


def test_callbacks_carry_their_state_through_checkpoints():
    assert {"state", "from_state"} <= set(vars(ExportableState))
    assert "restore_callback_states_from_checkpoint" in inspect.getsource(Trainer._load_callback_state)
