import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest


DATA = Path(__file__).parents[1] / "data"
AT_LEAST = {"train": 1000, "validation": 200, "challenging": 200}
PER_CATEGORY = {"train": 75, "validation": 15, "challenging": 10}
CATEGORIES = ["basic", "color", "material", "counting", "spatial", "contradiction", "abstract", "text", "style"]
CATEGORIES += ["people", "places", "action", "composition"]
DIFFICULTIES = ["easy", "medium", "hard"]
LITTLE_WORDS = set("a an the of on in at to with and is are that it its by for from as".split())
each_file = pytest.mark.parametrize("name", AT_LEAST)


def lines(name):
    return (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()


def load(name):
    return [json.loads(line) for line in lines(name)]


def prompts(*names):
    return [row["user_prompt"] for name in names for row in load(name)]


def words(prompt):
    """The prompt in lower case, without punctuation and articles."""
    return [word for word in re.findall(r"\w+", prompt.lower()) if word not in ("a", "an", "the")]


def near_duplicates(texts, limit=0.8):
    """Pairs of prompts with a Jaccard index of their content words of at least `limit`."""
    # A prompt of little words only would have no content: it keeps them.
    sets = [set(words(text)) - LITTLE_WORDS or set(words(text)) for text in texts]
    holders, pairs = defaultdict(list), []
    for i, mine in enumerate(sets):
        for j, shared in Counter(j for word in mine for j in holders[word]).items():
            if shared / (len(mine) + len(sets[j]) - shared) >= limit:
                pairs.append((texts[j], texts[i]))
        for word in mine:
            holders[word].append(i)
    return pairs


def card_table(heading):
    """The card's table whose first column is `heading`: {row: {column: count}}."""
    card = (DATA / "README.md").read_text(encoding="utf-8")
    table = re.search(rf"^\| {heading} .*(?:\n\|.*)+", card, re.MULTILINE).group().splitlines()
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: dict(zip(head[1:], map(int, row[1:]), strict=True)) for row in body}


@each_file
def test_every_line_is_one_row_with_the_three_fields(name):
    for number, line in enumerate(lines(name), 1):
        row = json.loads(line)
        assert list(row) == ["user_prompt", "category", "difficulty"], f"{name}.jsonl:{number}"
        assert line == json.dumps(row, ensure_ascii=False), (
            f"{name}.jsonl:{number}: not written with ensure_ascii=False"
        )
        assert row["user_prompt"] == " ".join(row["user_prompt"].split()), f"{name}.jsonl:{number}: stray white space"


@each_file
def test_there_are_as_many_rows_as_promised(name):
    assert len(load(name)) >= AT_LEAST[name]


@each_file
def test_categories_and_difficulties_are_the_documented_ones(name):
    assert {row["category"] for row in load(name)} <= set(CATEGORIES)
    assert {row["difficulty"] for row in load(name)} <= set(DIFFICULTIES)


@each_file
def test_every_category_has_enough_prompts(name):
    counts = Counter(row["category"] for row in load(name))
    assert {category: counts[category] for category in CATEGORIES if counts[category] < PER_CATEGORY[name]} == {}


@pytest.mark.parametrize("name", ["train", "validation"])
def test_easy_medium_and_hard_are_each_a_fifth_or_more(name):
    rows = load(name)
    counts = Counter(row["difficulty"] for row in rows)
    assert all(counts[difficulty] >= len(rows) / 5 for difficulty in DIFFICULTIES), counts


def test_categories_are_mixed_along_the_file():
    first = Counter(row["category"] for row in load("train")[:200])
    assert set(first) == set(CATEGORIES)


def test_challenging_prompts_are_mostly_hard_and_never_easy():
    rows = load("challenging")
    counts = Counter(row["difficulty"] for row in rows)
    assert counts["easy"] == 0
    assert counts["hard"] >= 0.8 * len(rows)


def test_the_prompts_that_the_project_is_known_by_are_in_challenging():
    assert {
        "a purple rabbit eating carrots",
        "a square wheel rolling down a hill",
        "the concept of happiness as a creature",
        "a transparent glass butterfly",
        "a green cat with blue eyes",
    } <= set(prompts("challenging"))


def test_no_prompt_is_there_twice_within_or_across_files():
    counts = Counter(" ".join(words(prompt)) for prompt in prompts(*AT_LEAST))
    assert [prompt for prompt, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("name", ["validation", "challenging"])
def test_no_held_out_prompt_is_in_training(name):
    training = {" ".join(words(prompt)) for prompt in prompts("train")}
    assert [prompt for prompt in prompts(name) if " ".join(words(prompt)) in training] == []


def test_no_two_prompts_share_four_fifths_of_their_content_words():
    planted = ["A knitted octopus, on the shelf!", "an octopus knitted on shelf", "a knitted owl"]
    assert near_duplicates(planted) == [tuple(planted[:2])]
    assert near_duplicates(prompts(*AT_LEAST)) == []


@each_file
def test_prompts_have_1_to_40_words_and_mostly_2_to_15(name):
    lengths = [len(prompt.split()) for prompt in prompts(name)]
    assert min(lengths) >= 1 and max(lengths) <= 40
    assert sum(2 <= length <= 15 for length in lengths) >= 0.9 * len(lengths)


@each_file
def test_prompts_are_what_users_type_and_not_enhanced_ones(name):
    boosters = (
        r"\b(4k|8k|uhd|hdr|(highly|ultra|hyper)[ -]?(detailed|realistic)|masterpiece|trending|award[ -]winning)\b"
    )
    assert [prompt for prompt in prompts(name) if re.search(boosters, prompt.lower())] == []


@each_file
def test_prompts_name_no_brands_or_artists(name):
    brands = (
        "lego|barbie|disney|pixar|ghibli|marvel|pokemon|nintendo|coca|pepsi|nike|adidas|ferrari|porsche|vespa|jeep"
    )
    brands += "|polaroid|frisbee|rubik|starbucks|iphone|google|tesla"
    artists = "picasso|van gogh|monet|dal[ií]|escher|banksy|warhol|hokusai|klimt|mondrian|rembrandt|kahlo|artstation"
    named = re.compile(rf"\b({brands}|{artists})\b")
    assert [prompt for prompt in prompts(name) if named.search(prompt.lower())] == []


@each_file
def test_the_card_counts_what_is_in_the_file(name):
    rows = load(name)
    for heading, field, keys in [("category", "category", CATEGORIES), ("difficulty", "difficulty", DIFFICULTIES)]:
        table = card_table(heading)
        assert list(table) == [*keys, "all"]
        counts = Counter(row[field] for row in rows)
        expected = {**{key: counts[key] for key in keys}, "all": len(rows)}
        assert {key: table[key][name] for key in table} == expected
