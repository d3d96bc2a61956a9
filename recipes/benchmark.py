"""Turns a benchmark's files, as its authors publish them, into a JSON Lines file of prompts with questions.

    git clone https://github.com/djghosh13/geneval runs/geneval
    python recipes/benchmark.py geneval runs/geneval/prompts/evaluation_metadata.jsonl runs/geneval.jsonl

NAME          repository                   SOURCE in it                           licence
geneval       djghosh13/geneval            prompts/evaluation_metadata.jsonl      MIT
geneval2      facebookresearch/GenEval2    geneval2_data.jsonl                    CC BY-NC 4.0
dsg           j-min/DSG                    dsg/data/dsg-1k-anns.csv               Apache-2.0
compbench     Karine-Huang/T2I-CompBench   examples/dataset, or a .txt file       MIT
corebench     KwaiVGI/T2I-CoReBench        data, or a .json file                  Apache-2.0
partiprompts  google-research/parti        PartiPrompts.tsv                       Apache-2.0
dpg           TencentQQGYLab/ELLA          dpg_bench/dpg_bench.csv, or /prompts   Apache-2.0

A row has `user_prompt`, `category` and, but for compbench, partiprompts and dpg's /prompts, `questions`: a list of
{question, answer, needs, skill}. `needs` are indices, from 0, of the questions that must be answered right first.
A row of geneval keeps its `include` and `exclude`, too, by which the reward `geneval` judges an image.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


LICENCES = {
    "geneval": "MIT",
    "geneval2": "CC BY-NC 4.0: not for commercial use",
    "dsg": "Apache-2.0",
    "compbench": "MIT",
    "corebench": "Apache-2.0",
    "partiprompts": "Apache-2.0",
    "dpg": "Apache-2.0",
}

if __name__ == "__main__":  # before the import below, which takes seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", choices=LICENCES)
    parser.add_argument("source", metavar="SOURCE", help="the authors' file or folder")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the file to write, *.jsonl")
    arguments = parser.parse_args()
    if arguments.target.suffix != ".jsonl":
        parser.error(f"TARGET is {arguments.target}: it must end with .jsonl, by which the loader knows its kind")

from brushup.prompts.reading import read_csv, read_jsonl, read_text, read_txt


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ALWAYS_PLURAL = ("scissors", "skis")
PLURALS = {"broccoli": "broccoli", "computer mouse": "computer mice", "knife": "knives", "person": "people"}
PLURALS |= {"sheep": "sheep"} | {name: name for name in ALWAYS_PLURAL}


def geneval(source: str) -> Iterator[dict]:
    """Yield GenEval's prompts (Ghosh et al. 2023, arXiv 2310.11513); the questions follow from `include`."""
    for place, row in rows_of(source, read_jsonl):
        with expected(place, "`tag`, `prompt`, and `include`, a list of objects with `class` and `count`"):
            kept = {name: row[name] for name in ("tag", "include", "exclude") if name in row}
            questions = questions_on_objects(row["include"], always_count=row["tag"] == "counting")
            converted = prompt_row(row["prompt"], row["tag"], questions) | kept
        yield converted


def questions_on_objects(objects: list[dict], always_count: bool) -> list[dict]:
    """Return a question on the presence of each object of GenEval's `include`, and on what else it asks for."""
    questions, presence = [], []  # presence: the index of the question on each object's presence
    for wanted in objects:
        name, count, here = wanted["class"], wanted["count"], len(questions)
        be = "Are" if name in ALWAYS_PLURAL else "Is"
        article = "" if name in ALWAYS_PLURAL else "an " if name[0] in "aeiou" else "a "
        presence.append(here)
        questions.append(question(f"{be} there {article}{name} in the image?", skill="object"))
        if count > 1 or always_count:
            questions.append(question(f"How many {plural(name)} are in the image?", NUMBERS[count], [here], "count"))
        if "color" in wanted:
            questions.append(question(f"{be} the {name} {wanted['color']}?", needs=[here], skill="color"))
        if "position" in wanted:
            relation, other = wanted["position"]
            relation = f"to the {relation}" if relation.endswith(" of") else relation
            asked = f"{be} the {name} {relation} the {objects[other]['class']}?"
            questions.append(question(asked, needs=[presence[other], here], skill="position"))
    return questions


def geneval2(source: str) -> Iterator[dict]:
    """Yield GenEval 2's prompts (arXiv 2512.16853), by the number of facts in each."""
    for place, row in rows_of(source, read_jsonl):
        with expected(place, "`prompt`, `atom_count`, `vqa_list` of question and answer, and a list `skills` as long"):
            asked = zip(row["vqa_list"], row["skills"], strict=True)
            questions = [question(text, answer, skill=skill) for (text, answer), skill in asked]
            converted = prompt_row(row["prompt"], f"{row['atom_count']} facts", questions)
        yield converted


def dsg(source: str) -> Iterator[dict]:
    """Yield the prompts of a table in the form of DSG-1k (Cho et al. 2024, arXiv 2310.18235), a line a question.

    A question comes after those that it needs. Of `dependency`, `needs` leaves out what is no other question of the
    prompt (0 for none, the question's own number, a word, a number that is not there) and what closes a circle; the
    authors' file has them all.
    """
    by_item = defaultdict(list)
    for place, row in rows_of(source, read_csv):
        with expected(place, "`item_id`, `text`, `proposition_id`, `dependency` and `question_natural_language`"):
            named = [number.strip() for number in row["dependency"].split(",")]
            asked = question(row["question_natural_language"], skill=row["category_broad"])
            by_item[row["item_id"]].append((row["text"], row["proposition_id"], named, asked))
    for item, lines in by_item.items():
        line_of = {number: line for line, (_, number, _, _) in enumerate(lines)}
        needs = {}  # of each line, the lines of the other questions that it needs
        for line, (_, _, named, _) in enumerate(lines):
            needs[line] = {line_of.get(number, line) for number in named} - {line}
        places, questions = {}, []  # the place of each line in the list of questions
        while needs:
            line = next((line for line, needed in needs.items() if not needed & {*needs}), min(needs))
            needed = sorted(places[other] for other in needs.pop(line) if other in places)
            places[line] = len(places)
            questions.append(lines[line][-1] | {"needs": needed})
        yield prompt_row(lines[0][0], prefix(item), questions)


def dpg(source: str) -> Iterator[dict]:
    """Yield DPG-Bench's prompts (Hu et al. 2024, arXiv 2403.05135), with questions from its table, else without."""
    if not Path(source).is_dir():
        yield from dsg(source)
        return
    for file in files_of(source, "*.txt"):
        yield prompt_row(read_text(file), prefix(file.stem))


def corebench(source: str) -> Iterator[dict]:
    """Yield T2I-CoReBench's prompts (Li et al. 2025, arXiv 2509.03516), a file a category."""
    for file in files_of(source, "*.json"):
        try:
            rows = json.loads(read_text(file))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{error.lineno}: not valid JSON ({error.msg})") from error
        with expected(file, "an object with an object for each prompt"):
            rows = rows.items()
        for name, row in rows:
            with expected(f"{file}: {name}", "`Prompt`, and `Checklist`, a list of `question` and `tags`"):
                checks = [(check["question"], (check["tags"] or [file.stem])[0]) for check in row["Checklist"]]
                questions = [question(text, skill=tag.replace("_", "-")) for text, tag in checks]
                converted = prompt_row(row["Prompt"], file.stem, questions)
            yield converted


def compbench(source: str) -> Iterator[dict]:
    """Yield T2I-CompBench's prompts (Huang et al. 2023, arXiv 2307.06350); of a folder those for evaluation."""
    for file in files_of(source, "*_val.txt"):
        for _, row in rows_of(file, read_txt):
            yield prompt_row(row["user_prompt"], file.stem.removesuffix("_val"))


def partiprompts(source: str) -> Iterator[dict]:
    """Yield PartiPrompts (Yu et al. 2022, arXiv 2206.10789)."""
    header, *lines = read_text(source).splitlines()
    for number, line in enumerate(lines, start=2):  # a quotation mark is a part of the prompt, also in its first place
        with expected(f"{source}:{number}", "a table with tabs between Prompt, Category, Challenge and Note"):
            row = dict(zip(header.split("\t"), line.split("\t"), strict=True))
            converted = prompt_row(row["Prompt"], row["Category"]) | {"challenge": row["Challenge"]}
        yield converted


# --------------------------------------------------------------------------------------------------------- helpers


def prompt_row(user_prompt: str, category: str | None, questions: list[dict] | None = None) -> dict:
    """Return a row of the target; without questions it has no such column."""
    row = {"user_prompt": user_prompt.strip(), "category": category}
    return row if questions is None else row | {"questions": questions}


def question(text: str, answer: str = "yes", needs: list[int] | None = None, skill: str = "") -> dict:
    """Return an entry of `questions`; the answer is in lower case."""
    return {"question": text.strip(), "answer": answer.lower(), "needs": needs or [], "skill": skill}


def plural(name: str) -> str:
    """Return the plural of a class of COCO."""
    return PLURALS.get(name) or name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def prefix(name: str) -> str | None:
    """Return the letters that the name of a prompt begins with, its origin ("whoops_5", "tifa160_3"); None without."""
    return re.match(r"[A-Za-z_]*", name)[0].strip("_") or None


def files_of(source: str, pattern: str) -> list[Path]:
    """Return the files of the folder that the pattern fits; of a file, itself."""
    path = Path(source)
    files = sorted(path.glob(pattern)) if path.is_dir() else [path]
    if not files or files[0].suffix != Path(pattern).suffix:
        raise ValueError(f"{source}: expected a folder with {pattern}, or one such file")
    return files


def rows_of(source: str | Path, read: Callable[[str], Iterator]) -> Iterator[tuple[str, dict]]:
    """Yield the place (file and line) of each row that a reader of prompt files finds, and the row."""
    for number, row in read(str(source)):
        if isinstance(row, str):
            raise ValueError(f"{source}:{number}: {row}")
        yield f"{source}:{number}", row


@contextmanager
def expected(place: str | Path, what: str) -> Iterator[None]:
    """Turn what fails inside this context into a ValueError that says where, and what was expected there."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        reason = "a value is of another kind" if isinstance(error, AttributeError | TypeError) else reason
        raise ValueError(f"{place}: expected {what} ({reason})") from error


if __name__ == "__main__":
    converters = (geneval, geneval2, dsg, compbench, corebench, partiprompts, dpg)
    convert = {converter.__name__: converter for converter in converters}[arguments.name]
    try:
        rows = list(convert(arguments.source))
    except (OSError, ValueError) as error:
        raise SystemExit(f"not converted: {error}") from error
    if not rows:
        raise SystemExit(f"not converted: {arguments.source} has no prompts")
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    arguments.target.write_text("".join(lines), encoding="utf-8")
    count = sum(len(row.get("questions", [])) for row in rows)
    licence = f"licence of {arguments.name}: {LICENCES[arguments.name]}"
    print(f"{arguments.target}: {len(rows):,} prompts, {count:,} questions; {licence}")
