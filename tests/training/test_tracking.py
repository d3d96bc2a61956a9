"""Trackers: a short training with each, offline, read back from the files that it left; and the log file of a run."""

import importlib.util
import io
import json
import logging
import re
import sqlite3
import sys
import zlib
from concurrent.futures import Future

import pandas
import pytest
from PIL import Image, ImageChops
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations.integration_utils import rewrite_logs

from brushup.common import thumbnail
from brushup.config import masked
from brushup.console import WithoutSecrets
from brushup.evaluation.sheet import CELL, GAP
from brushup.render.job import paired_seeds
from brushup.training.tracking import Sample, check_trackers, sample_grid
from support.launching import TOKEN, finished, recipe, run
from support.training import StubWorker, history, make_trainer


def colour(prompt, seed):
    """What `PaintingWorker` fills the picture of a prompt with."""
    return tuple(zlib.crc32(f"{prompt}|{seed}".encode()).to_bytes(4, "big")[:3])


class PaintingWorker(StubWorker):
    """Each prompt and seed has a colour of its own. A user's own prompt with a comma in it can't be drawn."""

    def __init__(self):
        super().__init__(self.score)

    def score(self, job):
        return "out of memory" if job.prompt == job.user_prompt and "," in job.prompt else len(job.prompt) % 7 / 7

    def submit(self, jobs, return_images=False):
        future = super().submit(jobs, return_images)
        for job, result in zip(jobs, future.result(), strict=True):
            result.image = result.image and Image.new("RGB", (32, 32), colour(job.prompt, job.seed))
        return future


TRAIN = """
import json, socket, sys
from pathlib import Path
import wandb
sys.path[:0] = ["tests", "tests/training"]
from test_tracking import PaintingWorker, centre, make_trainer
from brushup.config import DataConfig, RenderConfig
from brushup.prompts.dataset import load_prompts
from brushup.training.callbacks import ValidateAtTheEnd
from brushup.training.tracking import Tracking

folder, requested = Path(sys.argv[1]), []
connect, resolve = socket.socket.connect, socket.getaddrinfo

def watched_connect(self, address):
    if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
        requested.append(str(address))
    return connect(self, address)

def watched_resolve(host, *rest, **more):
    requested.append(str(host))
    return resolve(host, *rest, **more)

socket.socket.connect, socket.getaddrinfo = watched_connect, watched_resolve
log, history = wandb.Run.log, []

def plain(value):
    if isinstance(value, wandb.Table):
        return {"columns": value.columns, "data": [[plain(cell) for cell in row] for row in value.data]}
    return centre(value.image) if isinstance(value, wandb.Image) else value

def watched_log(run, data, *rest, **more):
    history.append({name: plain(value) for name, value in data.items()})
    return log(run, data, *rest, **more)

wandb.Run.log = watched_log

for name in ("tensorboard", "trackio", "wandb"):
    trainer = make_trainer(
        folder / name, PaintingWorker(), prompts=folder / "prompts.jsonl", max_steps=3, max_completion_length=8,
        reward_funcs=["clip", "keyword_retention"], reward_weights=[1.0, 0.5], images_per_prompt=2, beta=0.01,
        eval_dataset=load_prompts(str(folder / "prompts.jsonl")), eval_on_start=True,
        report_to=[name], log_images_steps=1, log_completions=True, num_completions_to_print=0,
    )
    drawing = RenderConfig("the-generator", {"token": "hf_very_secret"}, {"guidance_scale": 3.5})
    trainer.add_callback(Tracking(trainer, DataConfig("validation.jsonl", train_prompts="train.jsonl"), drawing))
    trainer.add_callback(ValidateAtTheEnd())
    trainer.train()
    (folder / f"{name}.json").write_text(json.dumps(trainer.state.log_history))
stored = {"history": history, "settings": dict(wandb.run.config)}
(folder / "to_wandb.json").write_text(json.dumps(stored, default=str))
(folder / "requested.json").write_text(json.dumps(requested))
"""
PROMPTS = ["a crimson disk", "box, green, huge"]  # each in every batch; the second one has no picture of its own


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three steps with each tracker, in a process of their own: trackio reads its folder when it is imported."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"user_prompt": prompt, "category": "some"} for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "wandb").mkdir()
    homes = {f"WANDB_{name}_DIR": str(folder / "home") for name in ("CACHE", "CONFIG", "DATA")}
    homes |= {"WANDB_DIR": str(folder / "wandb"), "TRACKIO_DIR": str(folder / "trackio" / "db")}
    variables = homes | {"WANDB_MODE": "offline"}
    program = tmp_path_factory.mktemp("program") / "train.py"
    program.write_text(TRAIN)
    run([sys.executable, str(program), str(folder)], variables=variables, real=True)  # trackio reads them at import
    return folder


def logged(runs, tracker):
    """What the trainer logged, by (step, name), as the trackers name it; the last entry is of the run as a whole."""
    entries = [entry for entry in json.loads((runs / f"{tracker}.json").read_text()) if "train_runtime" not in entry]
    return {
        (entry["step"], name): value
        for entry in entries
        for name, value in rewrite_logs({key: value for key, value in entry.items() if key != "step"}).items()
    }


def drawn(runs, tracker):
    """The rewrites that were drawn, by step, from the parquet files: [step, user prompt, rewrite, reward]."""
    tables = [pandas.read_parquet(file) for file in sorted((runs / tracker / "completions").glob("*.parquet"))]
    rows = pandas.concat(tables[:3]).itertuples()  # the same once more comes at the end of the run
    return [
        [r.step - 1, r.user_prompt, r.rewrite, r.clip + 0.5 * r.keyword_retention]
        for r in rows
        if isinstance(r.rewrite, str)
    ]


def same(rows, others):
    return [row[:3] for row in rows] == [row[:3] for row in others] and [row[3] for row in rows] == pytest.approx(
        [row[3] for row in others], abs=1e-3
    )


def colours(step, user_prompt, rewrite):
    """What the pictures of the rewrite and of the user's own prompt must show."""
    seed = paired_seeds(42, step, user_prompt, 1)[0]
    return colour(rewrite, seed), None if "," in user_prompt else colour(user_prompt, seed)


def centre(image):
    return image.convert("RGB").getpixel((image.width // 2, image.height // 2))


def test_what_a_user_wants_to_see_is_logged(runs):
    names = {name for _, name in logged(runs, "wandb")}
    rewards = {f"rewards/{name}/{part}" for name in ("clip", "keyword_retention") for part in ("mean", "std")}
    others = {"loss", "reward", "reward_std", "kl", "entropy", "completions/mean_length", "frac_reward_zero_std"}
    render = {f"render/{name}" for name in ("malformed", "failed", "share_cut/words", "wait_seconds", "wait_share")}
    assert {f"train/{name}" for name in rewards | others | render} <= names
    validation = {"reward", "rewards/clip/mean", "reward_by_category/some", "malformed", "failed", "above_original"}
    assert {f"eval/{name}" for name in validation} <= names
    assert {step for step, name in logged(runs, "wandb") if name == "eval/reward"} == {0, 3}
    assert 0 < len(drawn(runs, "wandb")) < 3 * 8, "the table must be tested with malformed rewrites among the others"


def test_tensorboard(runs):
    (folder,) = (runs / "tensorboard" / "runs").iterdir()
    stored = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0}).Reload()
    scalars = {(e.step, name): e.value for name in stored.Tags()["scalars"] for e in stored.Scalars(name)}
    assert logged(runs, "tensorboard") == pytest.approx(
        {key: scalars.get(key) for key in logged(runs, "tensorboard")}, rel=1e-5
    )

    def texts(name):
        return {e.step: e.tensor_proto.string_val[0].decode() for e in stored.Tensors(f"{name}/text_summary")}

    assert json.loads(texts("args")[0])["reward_weights"] == [1.0, 0.5]
    check_settings(json.loads(texts("settings")[0].strip("`json\n")))
    cells = [
        [step, *map(str.strip, line.strip("| ").split(" | "))]
        for step, table in texts("pictures").items()
        for line in table.splitlines()[2:]
    ]
    assert same([[*row[:3], float(row[3])] for row in cells], drawn(runs, "tensorboard"))
    for event in stored.Images("pictures"):
        file = runs / "tensorboard" / "images" / f"step-{event.step:06d}.png"
        grid = Image.open(io.BytesIO(event.encoded_image_string))
        assert ImageChops.difference(grid.convert("RGB"), Image.open(file)).getbbox() is None
    assert len(stored.Images("pictures")) == 3


def test_trackio(runs):
    database = sqlite3.connect(runs / "trackio" / "db" / "huggingface.db")
    entries = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    scalars = {(e["train/global_step"], name): e[name] for e in entries if "train/global_step" in e for name in e}
    assert logged(runs, "trackio") == pytest.approx({key: scalars.get(key) for key in logged(runs, "trackio")})
    ((settings,),) = database.execute("SELECT config FROM configs").fetchall()  # and so one run, to its last entry
    settings = json.loads(settings)
    check_settings(settings)
    assert settings["reward_weights"] == [1.0, 0.5] and settings["peft_config"]["default"]["r"] == 4
    rows = [row for entry in entries if "pictures" in entry for row in entry["pictures"]["_value"]]
    assert same([list(row.values())[:4] for row in rows], drawn(runs, "trackio"))
    for row in rows:
        files = [row[name] and runs / "trackio" / "db" / "media" / row[name]["file_path"] for name in PICTURES]
        shown = tuple(file and centre(Image.open(file)) for file in files)
        assert shown == colours(row["step"], row["user_prompt"], row["rewrite"])
    assert any("completions" in entry for entry in entries)


PICTURES = ("picture", "original")


def test_wandb(runs):
    """What reaches wandb's own `log`, which writes it to a file."""
    (file,) = runs.glob("wandb/wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 10_000
    stored = json.loads((runs / "to_wandb.json").read_text())
    check_settings(stored["settings"])
    assert stored["settings"]["reward_weights"] == [1.0, 0.5]
    entries = stored["history"]
    scalars = {(e["train/global_step"], name): e[name] for e in entries if "train/global_step" in e for name in e}
    assert logged(runs, "wandb") == pytest.approx({key: scalars.get(key) for key in logged(runs, "wandb")})
    tables = [entry["pictures"] for entry in entries if "pictures" in entry]
    assert all(table["columns"] == ["step", "user_prompt", "rewrite", "reward", *PICTURES] for table in tables)
    rows = [row for table in tables for row in table["data"]]
    for step, user_prompt, rewrite, _, *shown in rows:
        assert [image and tuple(image) for image in shown] == list(colours(step, user_prompt, rewrite))
    assert same(rows, drawn(runs, "wandb"))
    assert any("completions" in entry for entry in entries)


def check_settings(settings):
    assert settings["generator"] == "the-generator" and settings["render_kwargs"] == {"guidance_scale": 3.5}
    assert settings["train_prompts"] == "train.jsonl" and settings["generator_init_kwargs"] == {"token": "<TOKEN>"}


def test_nothing_asks_the_network(runs):
    assert json.loads((runs / "requested.json").read_text()) == []


def test_no_secret_is_stored(runs):
    files = [file for file in runs.rglob("*") if file.is_file()]
    assert not [file for file in files if b"hf_very_secret" in file.read_bytes()]


def test_what_becomes_of_the_originals_touches_no_reward(tmp_path):
    """Neither that they are drawn nor that the worker can't draw them; the rewrites are shown all the same."""

    class NoOriginals(PaintingWorker):
        def submit(self, jobs, return_images=False):
            future = Future()
            if all(job.prompt == job.user_prompt for job in jobs):
                future.set_exception(ConnectionError("no worker for these"))
                return future
            return super().submit(jobs, return_images)

    found = {}
    for name, worker, every in (
        ("none", PaintingWorker(), 0),
        ("drawn", PaintingWorker(), 1),
        ("lost", NoOriginals(), 1),
    ):
        trainer = make_trainer(tmp_path / name, worker, log_images_steps=every)
        trainer.train()
        found[name] = [history(trainer, column) for column in ("reward", "loss", "render/malformed", "render/failed")]
    assert found["none"] == found["drawn"] == found["lost"]
    assert (tmp_path / "lost" / "images" / "step-000001.png").exists()


def test_the_grid_shows_the_original_first():
    red, blue, green = (Image.new("RGB", (32, 32), name) for name in ("red", "blue", "green"))
    grid = sample_grid(
        [Sample("a", "b", 0.5, blue, red), Sample("a", "c", 0.7, green, red), Sample("d", "e", 0.1, green, None)]
    )
    first, second = GAP + 26 + CELL // 2, GAP + 26 + CELL // 2 + (grid.height - GAP) // 2
    shown = [[grid.getpixel((GAP + CELL // 2 + i * (CELL + GAP), y)) for i in range(3)] for y in (first, second)]
    red, blue, green, white = (255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 255)
    assert shown == [[red, blue, green], [green, white, white]]


def test_large_images_are_made_small_for_trackers():
    large = Image.new("RGB", (1024, 512))
    assert thumbnail(large).size == (256, 128) and large.size == (1024, 512)


def test_secrets_are_masked():
    settings = {
        "token": "a",
        "judge": {"api_key": "b", "max_tokens": 3, "models": [{"password": "c"}]},
        "hub_token": None,
    }
    assert masked(settings) == {
        "token": "<TOKEN>",
        "judge": {"api_key": "<API_KEY>", "max_tokens": 3, "models": [{"password": "<PASSWORD>"}]},
        "hub_token": None,
    }


def test_a_tracker_that_is_not_there_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match="wanbd is not supported, only .*wandb"):
        check_trackers(["wanbd"])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "trackio" else find(name, *rest)
    )
    with pytest.raises(ImportError, match=r'trackio is not installed here.*pip install -e "\.\[tracking\]"'):
        check_trackers(["trackio"])


def test_a_record_with_a_secret_is_written_without_it(monkeypatch):
    monkeypatch.setenv("BRUSHUP_TOKEN", "open-sesame")
    record = logging.LogRecord("x", logging.INFO, "", 0, "sent %s and %s", ("open-sesame", "hf_mine"), None)
    assert WithoutSecrets("%(message)s", ["hf_mine", None]).format(record) == "sent <SECRET> and <SECRET>"


@pytest.mark.slow
def test_the_command_writes_a_log_and_a_resumed_run_continues_it(short_run):
    done, out = short_run
    log = (out / "train.log").read_text()
    stamped = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: (.*)"
    lines = [re.fullmatch(stamped, line)[1] for line in log.splitlines()]
    printed = [line for line in done.stdout.splitlines() if line]
    assert [line for line in lines if line in printed] == printed
    assert printed[1].startswith("policy") and "saved to" in printed[-1]
    (folder,) = (out / "runs").iterdir()
    stored = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in stored.Scalars("train/rewards/clip/mean")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in stored.Scalars("eval/checker_accuracy")] == [0, 3, 6]
    settings = stored.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"generator": "data/tiny_world/generator"' in settings

    resumed = recipe("--output_dir", str(out), "--resume_from_checkpoint", "true", "--reward_funcs", TOKEN)
    failed = finished(resumed)
    assert failed.returncode != 0 and "unknown reward" in failed.stderr
    longer = (out / "train.log").read_text()
    assert longer.startswith(log)
    assert re.search(r"Traceback .*recipes/grpo.py.*ValueError: unknown reward", longer.removeprefix(log), re.DOTALL)
    assert TOKEN not in longer
