import json
import re
import unicodedata
from collections import Counter, defaultdict

import pytest
from conftest import REPOSITORY


DATA = REPOSITORY / "data"
AT_LEAST = {"train": 1000, "validation": 200, "challenging": 200}
PER_CATEGORY = {"train": 75, "validation": 15, "challenging": 10}
CATEGORIES = ["basic", "color", "material", "counting", "spatial", "contradiction", "abstract", "text", "style"]
CATEGORIES += ["people", "places", "action", "composition", "korean"]
DIFFICULTIES = ["easy", "medium", "hard"]
LITTLE_WORDS = set("a an the of on in at to with and is are that it its by for from as".split())
HANGUL = re.compile("[가-힣]")
PLEASE = re.compile(r"(그려|만들어|보여|부탁|놓아|적어)\s*(줘|주세요|드려요|해요)")
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


def content_words(prompt):
    # A prompt of little words only would have no content: it keeps them.
    return set(words(prompt)) - LITTLE_WORDS or set(words(prompt))


def syllable_pairs(prompt):
    """Neighbouring syllables across spaces: Korean words change their endings, and users their spacing."""
    syllables = "".join(words(PLEASE.sub("", prompt)))
    return {syllables[i : i + 2] for i in range(max(1, len(syllables) - 1))}


def near_duplicates(texts, content=content_words, limit=0.8):
    """Pairs of prompts with a Jaccard index of their `content` (a set each) of at least `limit`."""
    sets = [content(text) for text in texts]
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


@each_file
def test_korean_prompts_are_mostly_hangul_and_all_others_have_none(name):
    for row in load(name):
        prompt = row["user_prompt"]
        letters = [letter for letter in prompt if letter.isalpha()]
        share = len(HANGUL.findall(prompt)) / max(1, len(letters))
        assert share > 0.5 if row["category"] == "korean" else share == 0, row
        assert unicodedata.is_normalized("NFC", prompt), f"{prompt}: syllables in pieces"


@each_file
def test_no_korean_prompt_is_easy_for_a_generator_that_learnt_english(name):
    counts = Counter(row["difficulty"] for row in load(name) if row["category"] == "korean")
    assert counts["easy"] == 0
    assert counts["hard"] >= counts["medium"] > 0


def test_korean_prompts_mostly_do_without_a_polite_ending_but_some_have_one():
    korean = [row["user_prompt"] for row in load("train") if row["category"] == "korean"]
    polite = sum(bool(re.search(r"(줘|주세요|요|어\?)$", prompt)) for prompt in korean)
    assert 0.1 * len(korean) <= polite <= 0.5 * len(korean)


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


def test_no_two_korean_prompts_share_half_of_their_syllable_pairs():
    planted = ["빨간 모자를 쓴 고양이 그려줘", "빨간모자 쓴 고양이가", "빨간 모자를 쓴 강아지"]
    assert near_duplicates(planted, syllable_pairs, 0.5) == [tuple(planted[:2])]
    korean = [prompt for prompt in prompts(*AT_LEAST) if HANGUL.search(prompt)]
    assert near_duplicates(korean, syllable_pairs, 0.5) == []


@each_file
def test_prompts_have_1_to_40_words_and_mostly_2_to_15(name):
    lengths = [len(prompt.split()) for prompt in prompts(name)]
    assert min(lengths) >= 1 and max(lengths) <= 40
    assert sum(2 <= length <= 15 for length in lengths) >= 0.9 * len(lengths)


@each_file
def test_prompts_are_what_users_type_and_not_enhanced_ones(name):
    boosters = (
        r"\b(4k|8k|uhd|hdr|(highly|ultra|hyper)[ -]?(detailed|realistic)|masterpiece|trending|award[ -]winning)\b"
        r"|[48]k|고화질|고해상도|고퀄|걸작|디테일|실사급"  # no \b: Korean endings follow without a space
    )
    assert [prompt for prompt in prompts(name) if re.search(boosters, prompt.lower())] == []


@each_file
def test_prompts_name_no_brands_or_artists(name):
    brands = (
        "lego|barbie|disney|pixar|ghibli|marvel|pokemon|nintendo|coca|pepsi|nike|adidas|ferrari|porsche|vespa|jeep"
    )
    brands += "|polaroid|frisbee|rubik|starbucks|iphone|google|tesla"
    artists = "picasso|van gogh|monet|dal[ií]|escher|banksy|warhol|hokusai|klimt|mondrian|rembrandt|kahlo|artstation"
    korean = "레고|디즈니|픽사|지브리|뽀로로|포켓몬|닌텐도|콜라|나이키|아이폰|삼성|카카오|카톡|네이버|스타벅스|테슬라"
    korean += "|포스트잇|초코파이|피카소|고흐|워홀|클림트|김홍도|신윤복|이중섭|박수근|백남준"
    named = re.compile(rf"\b({brands}|{artists})\b|{korean}")
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
