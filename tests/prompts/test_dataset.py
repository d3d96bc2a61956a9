import json
import logging

import pytest
from datasets import Dataset
from PIL import Image

from brushup.prompts.dataset import load_prompts, order_rows


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_rows_become_messages_and_keep_their_columns(tmp_path):
    file = write(tmp_path / "p.jsonl", '{"user_prompt": "a cat"}\n\n{"user_prompt": "고양이", "category": "basic"}\n')
    rows = load_prompts(file)
    assert list(rows["user_prompt"]) == ["a cat", "고양이"]
    assert list(rows["category"]) == [None, "basic"]
    assert rows[0]["prompt"][-1] == {"role": "user", "content": "a cat"}


def test_the_same_rows_from_every_format_and_any_column(tmp_path):
    rows = [{"caption": "a cat", "category": "basic"}, {"caption": 'a sign, "OPEN"', "category": "text"}]
    write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "p.csv", 'caption,category\na cat,basic\n"a sign, ""OPEN""",text\n')
    Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    loaded = [
        load_prompts(str(tmp_path / f"p.{kind}"), prompt_column="caption") for kind in ("jsonl", "csv", "parquet")
    ]
    assert loaded[0].to_list() == loaded[1].to_list() == loaded[2].to_list()
    assert list(loaded[0]["user_prompt"]) == ["a cat", 'a sign, "OPEN"']


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.jsonl", '{"user_prompt": "a cat"}\n{"user_prompt": "a', r"p\.jsonl:2: not valid JSON"),
        ("p.jsonl", '{"prompt": "a cat"}', r"p\.jsonl: there is no column 'user_prompt'; there is prompt"),
        ("p.jsonl", '{"user_prompt": "a cat"}\n\n{"user_prompt": " "}', r"p\.jsonl:3: `user_prompt` must be a text"),
        ("p.jsonl", '["a cat"]\n"a dog"', r"p\.jsonl:1: expected a JSON object.*1 more bad row"),
        ("p.jsonl", "\n", r"p\.jsonl: the file has no prompts"),
        ("p.csv", "user_prompt,category\na cat,basic\na dog\n", r"p\.csv:3: 1 cells, but the header has 2"),
        ("p.csv", "user_prompt,category\n,basic\n", r"p\.csv:2: `user_prompt` must be a text"),
        ("p.csv", "user_prompt\n", r"p\.csv: the file has no prompts"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, says):
    with pytest.raises(ValueError, match=says):
        load_prompts(write(tmp_path / name, text))


def test_only_a_line_feed_ends_a_row(tmp_path):
    """JSON allows other line separators inside a text."""
    file = write(tmp_path / "p.jsonl", '{"user_prompt": "a sign:\u2028OPEN"}\r\n{"user_prompt": ""}')
    with pytest.raises(ValueError, match=r"p\.jsonl:2: "):
        load_prompts(file)
    assert list(load_prompts(file, skip_bad_rows=True)["user_prompt"]) == ["a sign:\u2028OPEN"]


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path, caplog):
    lines = ['{"user_prompt": "a cat"}', "oops", '{"user_prompt": ""}', '{"user_prompt": "a dog"}']
    with caplog.at_level(logging.WARNING):
        rows = load_prompts(write(tmp_path / "p.jsonl", "\n".join(lines)), skip_bad_rows=True)
    assert list(rows["user_prompt"]) == ["a cat", "a dog"]
    assert "2 of 4 rows are bad and left out, the first" in caplog.text and "p.jsonl:2" in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        load_prompts(str(tmp_path / "nowhere.jsonl"))


def test_images_are_found_beside_the_file(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    file = tmp_path / "p.jsonl"
    rows = load_prompts(write(file, '{"user_prompt": "like this", "image": "red.png"}\n{"user_prompt": "a cat"}'))
    assert rows[0]["image"].getpixel((0, 0)) == (255, 0, 0) and rows[1]["image"] is None
    with pytest.raises(ValueError, match=r"p\.jsonl:1: there is no image .*blue\.png"):
        load_prompts(write(file, '{"user_prompt": "like this", "image": "blue.png"}'))


def test_the_first_samples(tmp_path):
    file = write(tmp_path / "p.jsonl", "\n".join(json.dumps({"user_prompt": f"cat {n}"}) for n in range(9)))
    assert list(load_prompts(file, max_samples=2)["user_prompt"]) == ["cat 0", "cat 1"]


# -------------------------------------------------------------------------------------------------------- the order


@pytest.fixture
def rows():
    kinds = [("basic", "easy")] * 6 + [("text", "hard")] * 3 + [("style", "medium")] * 2 + [("text", "easy")]
    return Dataset.from_list(
        [{"user_prompt": f"p{n}", "category": c, "difficulty": d} for n, (c, d) in enumerate(kinds)]
    )


def test_balanced_batches_have_every_category_alike(rows):
    ordered = order_rows(rows, "category", curriculum=False, seed=0)
    for start in range(0, len(ordered), 3):
        assert set(ordered[start : start + 3]["category"]) == {"basic", "text", "style"}
    assert set(ordered["user_prompt"]) == set(rows["user_prompt"])  # nothing is lost


def test_a_curriculum_goes_from_easy_to_hard(rows):
    ordered = order_rows(rows, None, curriculum=True, seed=0)
    assert list(ordered["difficulty"]) == ["easy"] * 7 + ["medium"] * 2 + ["hard"] * 3
    assert list(ordered["user_prompt"]) != sorted(ordered["user_prompt"])
    both = order_rows(rows, "category", curriculum=True, seed=0)
    assert set(both[:2]["category"]) == {"basic", "text"} and list(both["difficulty"])[:12] == ["easy"] * 12


def test_the_seed_decides_the_order(rows):
    orders = [list(order_rows(rows, "category", False, seed)["user_prompt"]) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_column_that_an_order_needs_is_named(rows):
    with pytest.raises(ValueError, match="no column 'difficulty'; there is user_prompt, category"):
        order_rows(rows.remove_columns("difficulty"), None, True, 0)
    odd = Dataset.from_list([{"user_prompt": "p", "difficulty": "extreme"}])
    with pytest.raises(ValueError, match="must be one of easy, medium, hard, found 'extreme'"):
        order_rows(odd, None, True, 0)


def test_a_data_set_with_splits_as_on_the_hub(tmp_path):
    """`datasets` reads a folder as it reads a Hub id: a file for each split."""
    for split, prompt in (("train", "a cat"), ("validation", "a dog")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": prompt, "category": "basic"}))
    for split, prompt in (("train", "a cat"), ("validation", "a dog")):
        rows = load_prompts(str(tmp_path), split, prompt_column="text")
        assert rows["user_prompt"] == [prompt] and rows["category"] == ["basic"]
