"""The watch for reward hacking: on made-up runs, and in training. On the tiny world: test_readme.py."""

import numpy as np
import pytest
from accelerate import PartialState

from brushup.config import PromptEnhancerConfig
from brushup.training.hacking_watch import RewardHackingWatch
from support.training import StubWorker, history, make_trainer


PartialState()  # loggers ask it which rank this is
ROWS, STEPS = 32, 120


def run(reward, seed=0, window=20, **means):
    """A watch that saw a run: each argument gives the mean of a step, 0..1 of the way; noise is 0.1 a rewrite and, as
    batches differ in difficulty, 0.02 a step."""
    rng = np.random.default_rng(seed)
    watch = RewardHackingWatch(window, stop=False)
    warned = []
    for step in range(STEPS):
        values = {
            name: of(step / STEPS) + rng.normal(0, 0.02) + rng.normal(0, 0.1, ROWS)
            for name, of in {"reward": reward, **means}.items()
        }
        watch.record(step + 1, values.pop("reward"), values)
        warned += [(name, step + 1) for name in watch.signs if name not in dict(warned)]
    return watch, dict(warned)


def rises(way):
    return 0.3 + 0.3 * way


def test_nothing_is_said_while_all_is_well():
    watch, _ = run(rises, monitor=rises, other=lambda way: 0.5, length=lambda way: 15 + 3 * way, cut=lambda way: 0.0)
    assert watch.found == [] and watch.signs == {}


def test_a_monitor_that_falls_while_the_reward_rises():
    """It is found after it passed its best, and the warning has both figures."""
    watch, warned = run(rises, monitor=lambda way: 0.5 + 0.2 * min(way, 0.5) - 0.4 * max(0.0, way - 0.5))
    assert list(warned) == ["monitor"] and STEPS / 2 < warned["monitor"] < STEPS
    assert "monitor fell from 0.60" in watch.found[0] and "while the reward rose from" in watch.found[0]
    assert len(watch.found) == 1  # and not again at each step


def test_a_slow_fall_that_no_window_shows_by_itself():
    assert "monitor" in run(rises, monitor=lambda way: 0.5 - 0.12 * way)[1]


def test_a_monitor_that_falls_with_the_reward_is_no_hacking():
    assert run(lambda way: 0.6 - 0.3 * way, monitor=lambda way: 0.6 - 0.3 * way)[1] == {}


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("length", lambda way: 15 + 15 * way),
        ("repetition", lambda way: 0.3 * way),
        ("cut", lambda way: max(0.0, way - 0.5)),
    ],
)
def test_rewrites_that_grow_repeat_themselves_or_are_cut(name, of):
    watch, warned = run(rises, **{name: of})
    assert list(warned) == [name] and f"{name} climbed from" in watch.found[0]


def test_noise_alone_hardly_ever_warns():
    """40 runs in which the reward rises and three monitors stay where they are."""
    flat = {f"monitor {number}": lambda way: 0.5 for number in range(3)}
    false_alarms = sum(bool(run(rises, seed=seed, **flat)[1]) for seed in range(40))
    assert false_alarms <= 1


def test_steps_of_which_nothing_was_scored_are_passed_over():
    watch = RewardHackingWatch(5, stop=False)
    for step in range(30):
        values = np.full(8, np.nan if step % 3 == 0 else 0.01 * step) + np.linspace(0, 0.01, 8)
        watch.record(step, values, {"monitor": -values, "other": np.full(8, np.nan)})
    assert list(watch.signs) == ["monitor"]


def test_a_monitor_that_a_resumed_run_has_more():
    watch = RewardHackingWatch(5, stop=False)
    for step in range(40):
        values = 0.01 * step + np.linspace(0, 0.01, 8)
        watch.record(step, values, {"old": values} | ({"new": -values} if step >= 20 else {}))
    assert list(watch.signs) == ["new"] and watch.found[0].startswith("new fell from -0.2")


def test_a_window_of_one_step_is_refused():
    with pytest.raises(ValueError, match="reward_hacking_window: 1 is neither 0 nor at least 2"):
        PromptEnhancerConfig(use_cpu=True, bf16=False, reward_hacking_window=1)


@pytest.mark.parametrize("stop", [False, True])
def test_training_warns_and_stops_if_asked(tmp_path, caplog, stop):
    """Each step is a little better paid and a little worse."""
    worker = StubWorker(lambda job: 0.1 * len(worker.batches) + 0.001 * (len(job.prompt) % 7))
    (tmp_path / "mine.py").write_text(
        "def mine(prompts, completions, trainer_state, **columns):\n"
        "    return [-0.1 * trainer_state.global_step + 0.001 * n for n in range(len(prompts))]\n"
    )
    options = {"reward_funcs": ["clip", f"{tmp_path}/mine.py:mine"], "reward_weights": [1.0, 0.0]}
    trainer = make_trainer(
        tmp_path, worker, **options, max_steps=16, reward_hacking_window=5, stop_on_reward_hacking=stop
    )
    trainer.train()
    assert "reward hacking? mine fell from" in caplog.text
    signs = history(trainer, "reward_hacking/mine")
    assert signs[:8] == [0.0] * 8 and signs == sorted(signs) and signs[-1] == 1.0
    assert history(trainer, "reward_hacking/length") == [0.0] * len(signs)
    assert len(signs) == trainer.state.global_step and (sum(signs) == 1 and len(signs) < 16) == stop
    assert (tmp_path / f"checkpoint-{len(signs)}" / "adapter_model.safetensors").is_file() == stop
