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
    write(tmp_path / "p.tsv", 'caption\tcategory\na cat\tbasic\na sign, "OPEN"\ttext\n')
    write(tmp_path / "p.json", json.dumps(rows, indent=2))
    Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    loaded = [
        load_prompts(str(tmp_path / f"p.{kind}"), prompt_column="caption").to_list()
        for kind in ("jsonl", "json", "csv", "tsv", "parquet")
    ]
    assert all(rows == loaded[0] for rows in loaded)
    assert [row["user_prompt"] for row in loaded[0]] == ["a cat", 'a sign, "OPEN"']
    lines = write(tmp_path / "p.txt", 'a cat\n\na sign, "OPEN"\n')
    assert load_prompts(lines)["user_prompt"] == ["a cat", 'a sign, "OPEN"']


def test_nested_columns_stay_as_they_are(tmp_path):
    """As in GenEval's evaluation_metadata.jsonl, whose `position` holds a text and a number."""
    wanted = [
        [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
        [{"class": "bird", "count": 2}],
        None,
    ]
    rows = [{"user_prompt": f"prompt {n}", "include": value} for n, value in enumerate(wanted)]
    assert list(load_prompts(write(tmp_path / "p.jsonl", lines(*rows)))["include"]) == wanted


@pytest.mark.parametrize("value", [["\ud83d"], {"x": "\ud83d"}])
def test_a_nested_value_that_no_table_can_store_is_named(tmp_path, value):
    rows = [{"user_prompt": "a cat", "scene": [["left of", 0]]}, {"user_prompt": "a dog", "scene": value}]
    with pytest.raises(ValueError, match=r"p\.jsonl:2: `scene` is "):
        load_prompts(write(tmp_path / "p.jsonl", lines(*rows)))


def test_a_file_with_a_row_for_each_question_is_refused(tmp_path):
    rows = [f"dsg{n // 3},a cat on a mat,{n}\n" for n in range(3)] + [f"dsg{n // 3},a dog,{n}\n" for n in range(3, 6)]
    file = write(tmp_path / "dsg.csv", "item_id,text,question_natural_language\n" + "".join(rows))
    with pytest.raises(ValueError, match=r"dsg\.csv: it has a row for each question .* 6 rows of 2 prompts"):
        load_prompts(file, prompt_column="text")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.jsonl", '{"user_prompt": "a cat"}\n{"user_prompt": "a', r"p\.jsonl:2: not valid JSON"),
        ("p.jsonl", '{"prompt": "a cat"}', r"p\.jsonl: there is no column 'user_prompt'; there is prompt"),
        ("p.jsonl", '{"user_prompt": "a cat"}\n\n{"user_prompt": " "}', r"p\.jsonl:3: `user_prompt` must be a text"),
        ("p.jsonl", '["a cat"]\n"a dog"', r"p\.jsonl:1: expected a JSON object.*1 more bad row"),
        ("p.jsonl", "\n", r"p\.jsonl: the file has no prompts"),
        ("p.json", '[{"user_prompt": "a cat"},\n"a dog"]', r"p\.json:2: expected a JSON object, found \"a dog\""),
        ("p.json", '{"user_prompt": "a cat"}', r"p\.json: expected a list of objects, found a mapping"),
        ("p.json", '[{"user_prompt": "a cat"},\n', r"p\.json:2: not valid JSON"),
        ("p.txt", "\n", r"p\.txt: the file has no prompts"),
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
    text = '{"user_prompt": "like this", "image": "red.png"}\n{"user_prompt": "a cat"}'
    rows = load_prompts(write(file, text), "validation")
    assert rows[0]["image"].getpixel((0, 0)) == (255, 0, 0) and rows[1]["image"] is None
    with pytest.raises(ValueError, match=r"p\.jsonl:1: there is no image .*blue\.png"):
        load_prompts(write(file, '{"user_prompt": "like this", "image": "blue.png"}'))


def test_the_first_samples(tmp_path):
    file = write(tmp_path / "p.jsonl", "\n".join(json.dumps({"user_prompt": f"cat {n}"}) for n in range(9)))
    assert list(load_prompts(file, max_samples=2)["user_prompt"]) == ["cat 0", "cat 1"]


def lines(*rows: dict) -> str:
    return "\n".join(json.dumps(row) for row in rows)


CATS = [{"user_prompt": f"cat {n}", "size": n} for n in range(4)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"user_prompt": 3}, "`user_prompt` is 3, not a text as elsewhere"),
        ({"user_prompt": "\ud83d"}, r"`user_prompt` is '\\ud83d', which no column can hold"),
        ({"user_prompt": "a" * 8001}, "`user_prompt` has 8001 characters, more than 8000"),
        ({"user_prompt": "a cat", "size": "big"}, "`size` is 'big', not a number as elsewhere"),
        ({"user_prompt": "a cat", "size": 2**70}, "`size` is 1180591620717411303424, which no column can hold"),
        ({"user_prompt": "a cat", "size": [1]}, r"`size` is \[1\], not a number as elsewhere"),
        ({"user_prompt": "a cat", "size": True}, "`size` is True, not a number as elsewhere"),
    ],
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_value_unlike_the_others_is_named_with_its_line(tmp_path, row, says, place):
    """Wherever it stands: most rows decide what is usual."""
    rows = [*CATS[:place], row, *CATS[place:]]
    file = write(tmp_path / "p.jsonl", lines(*rows))
    with pytest.raises(ValueError, match=rf"p\.jsonl:{place + 1}: {says}"):
        load_prompts(file)
    assert load_prompts(file, skip_bad_rows=True)["user_prompt"] == [cat["user_prompt"] for cat in CATS]


def test_whole_numbers_and_others_are_one_kind(tmp_path):
    rows = load_prompts(write(tmp_path / "p.jsonl", lines(*CATS, {"user_prompt": "half", "size": 0.5})))
    assert rows["size"] == [0, 1, 2, 3, 0.5]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_a_file_in_another_encoding_is_named(tmp_path, name, encoding):
    (tmp_path / name).write_bytes("user_prompt\nein großes Haus\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"{name}:\d: the byte 0x.. is not UTF-8; save the file in that encoding"):
        load_prompts(str(tmp_path / name))


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, text in (("p.jsonl", lines(*CATS)), ("p.csv", "user_prompt,size\ncat 0,0\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_prompts(str(tmp_path / name))["user_prompt"][0] == "cat 0"


def test_a_long_cell_of_a_csv_file_is_named(tmp_path):
    file = write(tmp_path / "p.csv", f"user_prompt\na cat\n{'a' * 200_000}\n")
    with pytest.raises(ValueError, match=r"p\.csv:3: `user_prompt` has 200000 characters"):
        load_prompts(file)


@pytest.mark.parametrize("name", ["prompt", "completions", "raw_answer", "images", "draft", "trainer_state"])
def test_a_column_whose_name_is_taken_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"the column '{name}' has a name that rewards get from training itself"):
        load_prompts(write(tmp_path / "p.jsonl", lines({"user_prompt": "a cat", name: "a"})))


def test_the_prompt_column_may_have_that_name(tmp_path):
    file = write(tmp_path / "p.jsonl", lines({"prompt": "a cat", "answer": "it"}))
    rows = load_prompts(file, prompt_column="prompt")
    assert rows["user_prompt"] == ["a cat"] and rows["answer"] == ["it"]
    both = write(tmp_path / "p.jsonl", lines({"user_prompt": "a", "caption": "b"}))
    with pytest.raises(ValueError, match="the column 'user_prompt' has a name"):
        load_prompts(both, prompt_column="caption")


def test_numbered_categories_are_labels(tmp_path):
    rows = load_prompts(write(tmp_path / "p.jsonl", lines({"user_prompt": "a", "category": 0, "difficulty": 1})))
    assert rows["category"] == ["0"] and rows["difficulty"] == ["1"]


def test_images_are_looked_at_when_they_are_loaded(tmp_path):
    """Truncated, floating-point and missing ones are named; turned, 16-bit and transparent ones look right."""
    picture = Image.new("RGB", (4, 2), "red")
    picture.save(tmp_path / "red.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("I;16", (4, 2), 0x8000).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    names = ["red.png", "turned.jpg", "deep.png", "clear.png"]
    rows = load_prompts(write(tmp_path / "p.jsonl", lines(*({"user_prompt": n, "image": n} for n in names))))
    images = rows["image"][:]
    assert [image.mode for image in images] == ["RGB"] * 4 and images[1].size == (2, 4)
    assert images[2].getpixel((0, 0)) == (127, 127, 127) and images[3].getpixel((0, 0)) == (255, 255, 255)
    Image.effect_noise((64, 64), 50).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:2000])
    for bad, says in (("half.png", "no image that can be read"), ("none.png", "there is no image")):
        text = lines({"user_prompt": "a", "image": "red.png"}, {"user_prompt": "b", "image": bad})
        with pytest.raises(ValueError, match=rf"p\.jsonl:2: .*{says}"):
            load_prompts(write(tmp_path / "p.jsonl", text), "validation")


def test_for_training_all_rows_have_an_image_or_none_has(tmp_path):
    """TRL's batches are one or the other."""
    Image.new("RGB", (4, 2), "red").save(tmp_path / "red.png")
    having = {"user_prompt": "a", "image": "red.png"}
    file = write(tmp_path / "p.jsonl", lines(having, {"user_prompt": "b"}, having))
    with pytest.raises(ValueError, match=r"p\.jsonl:2: `image` is missing; for training all rows have one"):
        load_prompts(file, "train")
    assert len(load_prompts(file, "train", skip_bad_rows=True)) == 2
    assert load_prompts(file, "validation")[1]["image"] is None


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
