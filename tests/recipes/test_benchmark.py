"""recipes/benchmark.py on files in the benchmarks' formats, with texts of our own."""

import json
import re
import runpy
import sys

import pytest
from conftest import REPOSITORY

from brushup.prompts.dataset import load_prompts


GENEVAL = [
    {"tag": "counting", "include": [{"class": "knife", "count": 3}], "exclude": [{"class": "knife", "count": 4}]},
    {
        "tag": "position",
        "include": [
            {"class": "skis", "count": 1, "color": "red"},
            {"class": "apple", "count": 1, "position": ["left of", 0]},
        ],
    },
]
GENEVAL = [row | {"prompt": f"prompt {number}"} for number, row in enumerate(GENEVAL)]
GENEVAL2 = [
    {
        "prompt": "two wet stones",
        "atom_count": 3,
        "vqa_list": [["Are there any stones?", "Yes"], ["How many stones?", "two"]],
        "skills": ["object", "count"],
    }
]
DSG = """item_id,text,keywords,proposition_id,dependency,category_broad,tuple,question_natural_language
lake_3,"a lake, frozen",k,1,0,entity,t,Is there a lake?
lake_3,"a lake, frozen",k,2,"1,2",attribute,t,Is the lake frozen?
wood_1,a wood,k,1,"3,4, deep",entity,t,Is there a tree?
wood_1,a wood,k,3,0,entity,t,Is there a wood?
wood_1,a wood,k,5,"1,6",relation,t,Is the tree in the wood?
wood_1,a wood,k,6,5,other,t,Is it an oak?
"""
COREBENCH = {
    "X-1": {
        "Prompt": "a bare desk",
        "Checklist": [
            {"question": "Is there a desk?", "tags": ["instance_pos"]},
            {"question": "Is it bare?", "tags": []},
        ],
    }
}


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Run the recipe, and return the rows that `load_prompts` reads of its target, or what it says at its end."""

    def run(name, source):
        target = tmp_path / "made" / f"{name}.jsonl"
        monkeypatch.setattr(sys, "argv", ["benchmark.py", name, str(source), str(target)])
        try:
            runpy.run_path(str(REPOSITORY / "recipes" / "benchmark.py"), run_name="__main__")
        except SystemExit as ended:
            assert not target.exists()
            return capsys.readouterr().err if ended.code == 2 else str(ended.code)
        return load_prompts(str(target), "validation").to_list()

    return run


def write(path, rows):
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def asked(row):
    return [(entry["question"], entry["answer"], entry["needs"], entry["skill"]) for entry in row["questions"]]


def test_geneval(convert, tmp_path, capsys):
    knives, apple = convert("geneval", write(tmp_path / "evaluation_metadata.jsonl", GENEVAL))
    assert asked(knives) == [
        ("Is there a knife in the image?", "yes", [], "object"),
        ("How many knives are in the image?", "three", [0], "count"),
    ]
    assert asked(apple) == [
        ("Are there skis in the image?", "yes", [], "object"),
        ("Are the skis red?", "yes", [0], "color"),
        ("Is there an apple in the image?", "yes", [], "object"),
        ("Is the apple to the left of the skis?", "yes", [0, 2], "position"),
    ]
    assert (knives["user_prompt"], knives["category"]) == ("prompt 0", "counting")
    for row, original in zip((knives, apple), GENEVAL, strict=True):  # the reward `geneval` judges by them
        assert row["include"] == original["include"] and row["exclude"] == original.get("exclude")
    assert "2 prompts, 6 questions; licence of geneval: MIT" in capsys.readouterr().out


def test_geneval2(convert, tmp_path, capsys):
    (row,) = convert("geneval2", write(tmp_path / "geneval2_data.jsonl", GENEVAL2))
    assert asked(row) == [("Are there any stones?", "yes", [], "object"), ("How many stones?", "two", [], "count")]
    assert (row["user_prompt"], row["category"]) == ("two wet stones", "3 facts")
    assert "CC BY-NC 4.0: not for commercial use" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dsg", "dpg"])
def test_a_table_in_the_form_of_dsg(convert, tmp_path, name):
    """Questions are numbered from 1 there, and come after those that they need; a circle is cut."""
    lake, wood = convert(name, write(tmp_path / "anns.csv", DSG))
    assert (lake["user_prompt"], lake["category"], wood["category"]) == ("a lake, frozen", "lake", "wood")
    assert asked(lake) == [("Is there a lake?", "yes", [], "entity"), ("Is the lake frozen?", "yes", [0], "attribute")]
    assert asked(wood) == [
        ("Is there a wood?", "yes", [], "entity"),
        ("Is there a tree?", "yes", [0], "entity"),
        ("Is the tree in the wood?", "yes", [1], "relation"),
        ("Is it an oak?", "yes", [2], "other"),
    ]


def test_prompts_without_questions(convert, tmp_path):
    write(tmp_path / "color_val.txt", "a red sock\r\na blue hat\r\n")
    write(tmp_path / "color_train.txt", "not for evaluation")
    write(tmp_path / "deep_wood_3.txt", "a deep wood")
    parti = 'Prompt\tCategory\tChallenge\tNote\n"OH" on a sock\tArts\tWriting\t\nno\tArts\tBasic\t"\n'
    rows = {
        "compbench": convert("compbench", tmp_path),
        "partiprompts": convert("partiprompts", write(tmp_path / "PartiPrompts.tsv", parti)),
        "dpg": convert("dpg", tmp_path),
    }
    found = {name: [(row["user_prompt"], row["category"]) for row in rows] for name, rows in rows.items()}
    assert found["compbench"] == [("a red sock", "color"), ("a blue hat", "color")]
    assert found["partiprompts"] == [('"OH" on a sock', "Arts"), ("no", "Arts")]
    assert ("a deep wood", "deep_wood") in found["dpg"]
    assert not any("questions" in row for name in rows for row in rows[name])


def test_corebench(convert, tmp_path):
    write(tmp_path / "C-MI.json", json.dumps(COREBENCH))
    (row,) = convert("corebench", tmp_path)
    assert (row["user_prompt"], row["category"]) == ("a bare desk", "C-MI")
    assert asked(row) == [("Is there a desk?", "yes", [], "instance-pos"), ("Is it bare?", "yes", [], "C-MI")]


@pytest.mark.parametrize(
    ("name", "file", "text", "says"),
    [
        ("geneval", "g.jsonl", f"\n{json.dumps(GENEVAL2[0])}", r"g\.jsonl:2: expected `tag`.*no 'include'"),
        ("geneval", "g.jsonl", '{"tag": "colors", "prompt": "x", "include": ["cat"]}', "another kind"),
        ("geneval", "g.jsonl", '{"tag": "colors"', r"g\.jsonl:1: not valid JSON"),
        ("geneval2", "g.jsonl", json.dumps(GENEVAL2[0] | {"skills": ["object"]}), r":1: expected .*`skills` as long"),
        ("dsg", "d.csv", "text\na lake\n", r"d\.csv:2: expected `item_id`, `text`.*there is no"),
        ("dsg", "d.csv", DSG.splitlines()[0], r"d\.csv has no prompts"),
        ("corebench", "c.json", '[\n{"Prompt": "x"}]', r"c\.json: expected an object with an object for each"),
        ("corebench", "c.json", '{"X-1": {"Prompt": "x"}}', r"c\.json: X-1: expected .*there is no 'Checklist'"),
        ("corebench", "c.json", '{"X-1":\n', r"c\.json:2: not valid JSON"),
        ("compbench", "c.csv", "a cat", r"c\.csv: expected a folder with \*_val\.txt, or one such file"),
        (
            "partiprompts",
            "p.tsv",
            "Prompt\tCategory\tChallenge\na cat\tArts\n",
            r"p\.tsv:2: expected a table",
        ),
        ("genevil", "g.jsonl", "", "invalid choice: 'genevil' .*geneval2.*partiprompts"),
    ],
)
def test_a_file_of_another_format_is_refused_with_its_line(convert, tmp_path, name, file, text, says):
    assert re.search(says, convert(name, write(tmp_path / file, text)))
