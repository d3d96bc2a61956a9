"""Publishing: the model card, what is refused, and a push to a Hub on loopback that is loaded back from there."""

import json
import re
import runpy
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import RENDER_KWARGS, REPOSITORY, TINY_WORLD, few_prompts
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
from trl import ModelConfig

from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.policy.enhancer import PromptEnhancer
from brushup.publishing.card import run_settings, write_model_card
from brushup.publishing.hub import check_trained, open_repo, publish
from brushup.rewards.registry import RewardSpec
from support.hub_server import HubServer
from support.launching import finished, recipe


TOKEN = "hf_" + "Sesame" * 6
POLICY = "data/tiny_world/policy"
PROMPTS = ("data/tiny_world/train.jsonl", "data/tiny_world/validation.jsonl")
PUSHED = {
    *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "README.md", "results.json", "images/before_after.png"),
}


def settings(policy: str = POLICY, **more) -> dict:
    clip = {"model_name": "local-dir:data/tiny_world/scorer", "api_key": TOKEN}
    args = PromptEnhancerConfig(
        checker="data/tiny_world/world.py:check_pictures",
        use_cpu=True,
        bf16=False,
        **more,
    )
    return run_settings(
        DataConfig(validation_prompts=PROMPTS[1], train_prompts=PROMPTS[0]),
        RenderConfig("stabilityai/sd3", render_kwargs={"height": 32}, generator_init_kwargs={"token": TOKEN}),
        args,
        ModelConfig(policy),
        [RewardSpec("clip", 1.0, clip, gate=0.1), RewardSpec("length", 0.0, {"target": 20})],
        train_count=1000,
        validation_count=200,
        step=7,
    )


def write_results(folder, **more) -> None:
    arms = {
        name: {"rewards": {"clip": clip, "length": 0.5}, "checker_accuracy": accuracy, "n": 198}
        for name, clip, accuracy in (("original", 0.18, 0.015), ("untrained", 0.42, 0.35), ("trained", 0.81, 0.95))
    }
    gains = {"clip": {"mean": 0.39, "ci95": [0.34, 0.43]}, "length": {"mean": 0.01, "ci95": [-0.02, 0.03]}}
    differences = {"trained - untrained": gains | {"win_rate": 0.875}}
    results = {"arms": arms, "differences": differences, "settings": settings(), **more}
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY_WORLD / "policy")


@pytest.fixture
def run_dir(tmp_path, monkeypatch, processor):
    """The output_dir of a run, without the training: an adapter that changes something, results, and by-products."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("WORLD_SIZE", "1")
    folder = tmp_path / "run"
    model = get_peft_model(
        Qwen2VLForConditionalGeneration.from_pretrained(POLICY), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_results(folder)
    for path in ("images/before_after.png", "images/step-000000.png"):
        (folder / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 32), "red").save(folder / path)
    for path in ("training_args.bin", "trainer_state.json", "checkpoint-2/optimizer.pt", "log.txt"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("not for others")
    rows = [{"user_prompt": 'crimson disk, "huge"'}]
    (folder / "validation_0.json").write_text(json.dumps({"rows": rows}))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process talks to."""
    with HubServer(TOKEN) as hub:
        for name, value in environment(hub, tmp_path).items():
            monkeypatch.setenv(name, value)
        constants = {  # read from the environment at import
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield hub


def environment(hub, folder, token: str = TOKEN) -> dict[str, str]:
    return {
        **{"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(folder / "home")},
        **{"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
    }


def run(command: list[str], hub, folder, token: str = TOKEN):
    """Return the outcome of the command in a new process: the warm one knows the real Hub's address."""
    done = finished(command, timeout=300, real=True, variables=environment(hub, folder, token))
    assert TOKEN not in done.stdout + done.stderr
    return done


def snippet(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def has_token(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_card_says_what_a_reader_needs(run_dir):
    card = ModelCard.load(write_model_card(run_dir, "me/tiny"))
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "image-text-to-text"
    assert {"brushup", "trl", "grpo", "lora"} <= set(card.data.tags)
    assert card.data.base_model is None and "not on the Hub" in card.text  # it is a folder
    assert card.data.model_name == "tiny" and card.text.startswith("\n# tiny\n")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"clip": 0.81, "length": 0.5, "checker_accuracy": 0.95, "clip_gain": 0.39, "length_gain": 0.01}
    assert {result.dataset_name for result in card.data.eval_results} == {f"198 held-out prompts of {PROMPTS[1]}"}
    assert re.search(r"^\| original +\| 0\.180 +\| 0\.500 +\| 1\.5% +\| 198 +\|$", card.text, re.MULTILINE)
    assert re.search(r"^\| trained +\| 0\.810 +\| 0\.500 +\| 95\.0% +\| 198 +\|$", card.text, re.MULTILINE)
    assert re.search(r"trained - untrained \| clip +\| \+0\.390 +\| \+0\.340 to \+0\.430 +\|", card.text)
    assert re.search(r"length +\| \+0\.010 +\| -0\.020 to \+0\.030 \(holds 0: no difference shown\)", card.text)
    assert "*untrained* on 87.5% of the prompts" in card.text
    for words in ("[stabilityai/sd3](https://huggingface.co/stabilityai/sd3)", "| `clip` ", "7 steps"):
        assert words in card.text
    assert "CLIP is nearly blind" in card.text and "best checkpoint" not in card.text
    assert "1,000 of `data/tiny_world/train.jsonl`" in card.text
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", card.text)
    assert "images/before_after.png" in links and all((run_dir / link).is_file() for link in links)
    assert not has_token(run_dir) and str(REPOSITORY) not in (run_dir / "results.json").read_text()


def test_a_card_from_results_of_an_earlier_version(run_dir):
    """They have `pictures` in place of `images`, and evaluations have settings as they were typed."""
    new = write_model_card(run_dir).read_text()
    results = json.loads((run_dir / "results.json").read_text())
    results["settings"]["pictures"] = results["settings"].pop("images")
    (run_dir / "results.json").write_text(json.dumps(results))
    assert write_model_card(run_dir).read_text() == new and "`gate: 0.1`" in new


def test_the_card_of_a_hub_model_names_it(run_dir):
    config = json.loads((run_dir / "adapter_config.json").read_text())
    (run_dir / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "Qwen/Qwen2-VL-2B"}))
    card = ModelCard.load(write_model_card(run_dir))
    assert card.data.base_model == "Qwen/Qwen2-VL-2B" and "not on the Hub" not in card.text
    assert f'from_pretrained("{run_dir}")' in snippet(card.text)  # not on the Hub yet


def test_the_example_of_a_policy_with_two_turns_shows_both(run_dir, capsys):
    assert "turns=2" not in snippet(write_model_card(run_dir).read_text())
    results = json.loads((run_dir / "results.json").read_text())
    results["arms"]["revised trained"] = results["arms"]["trained"]
    results["settings"]["images"] = {
        "generator": "data/tiny_world/generator",
        "generator_init_kwargs": {"text_encoder_3": None, "tokenizer_3": None},
        "render_kwargs": RENDER_KWARGS,
    }
    (run_dir / "results.json").write_text(json.dumps(results))
    exec(snippet(write_model_card(run_dir).read_text()), {})
    rewrite, revision = capsys.readouterr().out.strip().splitlines()
    assert rewrite and revision.startswith(f"{rewrite} -> ") and revision != f"{rewrite} -> "


def test_the_card_has_what_evaluation_found_later(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    gain = {"mean": 0.63, "ci95": [0.6, 0.66]}
    results["arms"]["static"] = results["arms"]["original"]
    results["differences"] = {
        "untrained - original": {"clip": gain, "win_rate": 0.7},
        "trained - original": {"clip": gain, "win_rate": 1.0, "by_category": {"order": gain}},
    }
    results["evaluation"] = {"prompts": "me/prompts", "images_per_prompt": 4, "policies": {"trained": str(run_dir)}}
    (run_dir / "results.json").write_text(json.dumps(results))
    card = ModelCard.load(write_model_card(run_dir))
    assert "trained is better than the user's prompt: reward +0.630 (95 % interval +0.600 to +0.660)." in card.text
    assert "| static " in card.text and "4 images of each" in card.text and "*original* on 100.0%" in card.text
    assert re.search(r"trained - original \| clip +\| \+0\.630 +\| \+0\.600 to \+0\.660", card.text)
    assert {result.dataset_type for result in card.data.eval_results} == {"me/prompts"}
    results["evaluation"]["policies"] = {"trained": "runs/another"}
    (run_dir / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"is of other policies \(runs/another\)"):
        write_model_card(run_dir)


def change(file, edit) -> None:
    tensors = load_file(file)
    save_file({name: edit(name, tensor) for name, tensor in tensors.items()}, file)


def test_weights_that_are_not_finite_are_refused(run_dir):
    check_trained(run_dir)
    change(run_dir / "adapter_model.safetensors", lambda name, x: x.index_fill(0, torch.tensor([1]), torch.nan))
    with pytest.raises(ValueError, match=r"lora_\w\.weight is not finite.* lower learning_rate"):
        check_trained(run_dir)


def test_a_fresh_adapter_is_refused(run_dir):
    change(run_dir / "adapter_model.safetensors", lambda name, x: x * 0 if "lora_B" in name else x)
    with pytest.raises(ValueError, match="training changed nothing"):
        check_trained(run_dir)


def test_an_adapter_equal_to_the_one_it_was_continued_from_is_refused(run_dir, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (start / name).write_bytes((run_dir / name).read_bytes())
    write_results(run_dir, settings=settings(str(start)))
    with pytest.raises(ValueError, match="training changed nothing"):
        check_trained(run_dir)
    change(run_dir / "adapter_model.safetensors", lambda name, x: x * 1.001)
    check_trained(run_dir)


def test_so_it_is_if_that_one_came_from_the_hub(hub, run_dir):
    publish(run_dir, "me/start")
    write_results(run_dir, settings=settings("me/start"))
    check_trained(run_dir)  # nothing here to compare with
    huggingface_hub.hf_hub_download("me/start", "adapter_model.safetensors")
    with pytest.raises(ValueError, match="training changed nothing"):
        check_trained(run_dir)


def test_a_full_model_equal_to_its_base_is_refused_and_a_trained_one_has_its_card(tmp_path, monkeypatch, processor):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("WORLD_SIZE", "1")
    model = Qwen2VLForConditionalGeneration.from_pretrained(POLICY)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    write_results(tmp_path, settings=settings(load_best_model_at_end=True, eval_strategy="steps", save_steps=10))
    with pytest.raises(ValueError, match="training changed nothing"):
        check_trained(tmp_path)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    check_trained(tmp_path)
    card = ModelCard.load(write_model_card(tmp_path))
    assert card.data.library_name == "transformers" and "lora" not in card.data.tags
    assert "fully fine-tuned version of `data/tiny_world/policy`" in card.text and "best checkpoint" in card.text


def test_a_folder_without_weights_or_results_is_an_error(run_dir):
    (run_dir / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.json is not there.*--resume_from_checkpoint"):
        publish(run_dir, "me/tiny")
    (run_dir / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no trained weights"):
        publish(run_dir, "me/tiny")


def arguments(**more) -> PromptEnhancerConfig:
    return PromptEnhancerConfig(use_cpu=True, bf16=False, push_to_hub=True, **more)


def test_before_training_the_repository_is_there(hub):
    args = arguments(hub_model_id="tiny", hub_private_repo=True)
    before = vars(args).copy()
    assert open_repo(args) == "me/tiny" and hub.repos["me/tiny"].private and vars(args) == before
    assert open_repo(PromptEnhancerConfig(use_cpu=True, bf16=False)) is None


def test_before_training_a_push_that_would_fail_is_an_error(hub, monkeypatch):
    with pytest.raises(ValueError, match="--hub_model_id user/name"):
        open_repo(arguments())
    with pytest.raises(ValueError, match="HF_TOKEN in the environment") as error:
        open_repo(arguments(hub_model_id="me/tiny", hub_token=TOKEN))
    assert TOKEN not in str(error.value)
    with pytest.raises(ValueError, match="pushed once, at the end"):
        open_repo(arguments(hub_model_id="me/tiny", hub_strategy="checkpoint"))
    for name in ("me/a name", "somebody/new", "somebody/theirs"):
        with pytest.raises(RuntimeError, match=f"(?s)hub_model_id: {name} cannot be .*HF_TOKEN") as error:
            open_repo(arguments(hub_model_id=name))
        assert TOKEN not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RuntimeError, match="401"):
        open_repo(arguments(hub_model_id="me/tiny"))


def test_what_is_pushed_and_that_the_cards_example_runs_when_copied(hub, run_dir, tmp_path, caplog):
    policies = {"untrained": POLICY, "trained": str(run_dir)}
    evaluation = {"prompts": PROMPTS[1], "images_per_prompt": 1, "policies": policies, "init": {"token": TOKEN}}
    write_results(run_dir, evaluation=evaluation)
    assert publish(run_dir, "me/tiny") == f"{hub.url}/me/tiny"
    assert "others can't load the adapter" in caplog.text  # its base model is a folder
    pushed = hub.files("me/tiny")
    assert set(pushed) == PUSHED and len(hub.repos["me/tiny"].commits) == 2  # the empty one, and this
    assert not any(TOKEN.encode() in content for content in pushed.values()) and not has_token(tmp_path)
    assert pushed["adapter_model.safetensors"] == (run_dir / "adapter_model.safetensors").read_bytes()

    example = snippet(pushed["README.md"].decode())
    assert 'from_pretrained("me/tiny")' in example
    done = run([sys.executable, "-c", example], hub, tmp_path, token="")
    here = PromptEnhancer.from_pretrained(run_dir, device="cpu").enhance('crimson disk, "huge"').prompt
    assert done.stdout.strip() == here, done.stderr


def test_a_card_edited_by_hand_can_be_kept(hub, run_dir):
    (run_dir / "README.md").write_text("---\nlicense: mit\n---\n\nMine.\n")
    publish(run_dir, "me/tiny", keep_card=True)
    assert hub.files("me/tiny")["README.md"].endswith(b"Mine.\n")
    publish(run_dir, "me/tiny")
    assert b"## Limits" in hub.files("me/tiny")["README.md"]


def test_nothing_is_pushed_that_was_refused_or_without_a_right(hub, run_dir):
    with pytest.raises(OSError, match="403"):
        publish(run_dir, "somebody/theirs")
    hub.broken["POST .*/commit/main"] = 500
    with pytest.raises(OSError, match="500"):
        publish(run_dir, "me/tiny")
    hub.broken.clear()
    change(run_dir / "adapter_model.safetensors", lambda name, x: x * torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        publish(run_dir, "me/tiny")
    assert hub.files("me/tiny") == {} == hub.files("somebody/theirs")


def test_a_push_that_fails_after_training_says_how_to_go_on(hub, run_dir, capsys):
    hub.broken["POST .*/commit/main"] = 403
    args = SimpleNamespace(output_dir=str(run_dir), stop_on_reward_hacking=False)
    publish_or_explain = runpy.run_path(str(REPOSITORY / "recipes" / "grpo.py"))["publish_or_explain"]
    with pytest.raises(SystemExit, match="1"):
        publish_or_explain(SimpleNamespace(args=args, state=None), "me/tiny")
    printed = capsys.readouterr().out
    told = re.search(r"not pushed: .*403.*The run is whole, in (\S+)\. Once.*\n +(python .*)", printed, re.DOTALL)
    assert told[1] == str(run_dir)
    documented = "python recipes/publish.py --output_dir runs/tiny_cpu --hub_model_id me/name"
    assert documented in (REPOSITORY / "recipes" / "publish.py").read_text()
    assert told[2].strip() == f"python recipes/publish.py --output_dir {run_dir} --hub_model_id me/tiny"
    hub.broken.clear()
    publish(run_dir, "me/tiny")
    assert set(hub.files("me/tiny")) == PUSHED


@pytest.mark.slow
def test_training_pushes_by_itself(hub, tmp_path):
    out = tmp_path / "out"
    flags = ["--validation_prompts", few_prompts(tmp_path, 4), "--max_steps", "2", "--save_steps", "1"]
    flags += ["--output_dir", str(out), "--push_to_hub", "true", "--hub_model_id", "me/tiny"]
    done = run(recipe(*flags), hub, tmp_path)
    assert done.returncode == 0 and f"pushed to {hub.url}/me/tiny" in done.stdout, done.stderr[-2000:]
    pushed = hub.files("me/tiny")
    assert set(pushed) == PUSHED | {"generation_config.json"}  # how to decode
    assert len(hub.repos["me/tiny"].commits) == 2  # the empty one, and this
    assert (out / "checkpoint-1" / "training_args.bin").is_file() and not has_token(tmp_path)
    assert not any(TOKEN.encode() in content for content in pushed.values())
    assert pushed["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
