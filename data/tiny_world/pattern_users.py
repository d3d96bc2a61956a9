"""Users whose whole prompts are patterns, by thirteen writers who had seen no others.

A line of patterns_en.txt or patterns_ko.txt is a pattern, or (after @) other words for a word of the world. Its slots:

- `{a}`, `{b}`, `{c}`: groups of shapes, number and all; `{a_ref}` refers back to one ("the circle").
- `{a_n}`, `{a_size}`, `{a_color}`, `{a_shape}`: words for one fact of a group; `{a_is}` and `{a_it}` agree with its
  number; `{a_not_n}`, `{a_not_size}`, `{a_not_color}` are not true of it. In Korean `{a_color_noun}` is a noun.
- `{a_to_b}` ("to the left of") and `{a_side_b}` ("left"): where a group is as seen from another one.
- `{bg}`, in Korean the noun `{bg_noun}`: the background. `{not_bg}`, `{not_color}`, `{not_shape}`: not in the picture.
"""

import re
from collections import defaultdict
from pathlib import Path

import free_users
import odd_users
import odd_words
import other_users
import users
import world


SLOT, GROUP, PLACE = (re.compile(text) for text in (r"{(\w+)}", r"([abc])(?:_(\w+))?", r"([abc])_(?:to|side)_([abc])"))
DESCRIBES = re.compile("[abc](_(n|size|color|color_noun|shape))?")
FACTS = {"size": "size", "color": "color", "color_noun": "color", "shape": "shape"}
UNTRUE = {"not_n": ("count", (1, 2, 3, 4)), "not_size": ("size", world.SIZES), "not_color": ("color", world.COLORS)}
NOT_IN_IT = {"not_bg": world.BACKGROUNDS, "not_color": world.COLORS, "not_shape": world.SHAPES}
PLACES = (set(), {("a", "b")}, {("a", "b"), ("a", "c")})  # with one group, two, three


def kind_of(pattern: str) -> tuple[tuple, set[str]]:
    """Return the kind of scene that a pattern is for, and the groups that must be of one shape.

    A kind is the number of groups, whether their places are said, the looks that are said (None: all that the user
    says) and whether the background is said.

    Raises:
        ValueError: groups are left out, or differ in the looks that are said, or some places are said, not all.
    """
    slots = set(SLOT.findall(pattern))
    facts = defaultdict(set)
    for slot in slots:
        if group := GROUP.fullmatch(slot):
            facts[group[1]].add(group[2])
    places = {tuple(sorted(place.groups())) for slot in slots if (place := PLACE.fullmatch(slot))}
    looks = {frozenset(FACTS.get(fact) for fact in said & {*FACTS}) for said in facts.values()}
    whole = {letter for letter, said in facts.items() if None in said}
    if sorted(facts) != list("abc"[: len(facts)]) or not facts or places not in (set(), PLACES[len(facts) - 1]):
        raise ValueError(f"{pattern}: groups or places are left out")
    if len(looks) > 1 or whole not in (set(), {*facts}) or bool(whole) == bool(*looks):
        raise ValueError(f"{pattern}: not the same looks of all groups")
    single = {letter for letter, said in facts.items() if not said & {None, "n"}}
    return (len(facts), bool(places), None if whole else looks.pop(), bool(slots & {"bg", "bg_noun"})), single


def read_patterns(text: str) -> tuple[dict[tuple, list[tuple]], dict[str, list[str]]]:
    """Return the patterns by the kind of scene, each with the groups that must be of one shape; and other words."""
    patterns, words = defaultdict(list), {}
    for line in text.splitlines():
        name, _, others = line.partition(": ")
        if line.startswith("@"):
            words[name[1:]] = others.split("|")
        else:
            kind, single = kind_of(line)
            patterns[kind].append((line, single))
    return patterns, words


class PatternSpeaker(other_users.OtherSpeaker):
    """A user whose whole prompt is a pattern; arguments and attributes as for `Speaker`."""

    books = [read_patterns((Path(__file__).parent / f"patterns_{name}.txt").read_text()) for name in ("en", "ko")]

    def word(self, name: str) -> str:
        """Return a word for a shape, colour, size, relation or count of the world."""
        others = self.books[self.korean][1].get(name)
        if not others or self.rng.random() > 0.3:
            return super().word(name)
        self.spoken[name] = self.rng.choice(others)
        return self.spoken[name]

    def _value(self, slot: str, scene: dict) -> str:
        """Return the words for a slot of a pattern."""
        if slot in NOT_IN_IT:
            used = {value for group in scene["objects"] for value in group.values()} | {scene["background"]}
            return self._plain(self.rng.choice([name for name in NOT_IN_IT[slot] if name not in used]))
        if slot in ("bg", "bg_noun"):
            return self.word(scene["background"]) if slot == "bg" else users.KOREAN_NOUNS[scene["background"]]
        if place := PLACE.fullmatch(slot):
            pairs = {("abc"[first], "abc"[second]): side for first, side, second in scene["relations"]}
            pairs |= {(second, first): world.RELATIONS[side][0] for (first, second), side in pairs.items()}
            side = pairs[place.groups()]
            return self.word(side) if "_to_" in slot else (users.KOREAN_SIDES if self.korean else users.SIDES)[side]
        letter, fact = GROUP.fullmatch(slot).groups()
        return self._fact("abc".index(letter), fact)

    def _fact(self, index: int, fact: str | None) -> str:
        """Return the words for a fact of a group; None: for all of it."""
        group, choose, korean = self.shown[index], self.rng.choice, self.korean
        if fact is None:
            way = choose((users.Speaker, free_users.FreeSpeaker, odd_users.OddSpeaker)[: 2 if korean else 3])
            return (way._korean_phrase if korean else way._english_phrase)(self, group)
        if fact in ("is", "it"):
            return {"is": ("is", "are"), "it": ("it", "them")}[fact][group["count"] > 1]
        if fact == "ref":
            return self._about(index)["r"]
        if fact in UNTRUE:
            name, values = UNTRUE[fact]
            return self._plain(choose([value for value in values if value != group[name]]))
        if fact == "n":
            number = world.NUMBER_WORDS[group["count"]]
            return (self.word(number) or "하나") if korean else choose((number, number, str(group["count"])))
        if fact == "color_noun":
            self.spoken[group["color"]] = odd_words.COLOR_NOUNS[group["color"]]
            return self.spoken[group["color"]]
        word = self.word(group[fact])
        while word.endswith("고"):  # "small and": a colour would have to follow
            word = self.word(group[fact])
        return world.plural(word, group["count"]) if fact == "shape" and not korean else word

    def prompt(self, scene: dict) -> str:
        """Return the whole prompt; as `OtherSpeaker` does if no pattern is for such a scene."""
        groups, patterns = scene["objects"], self.books[self.korean][0]
        looks = frozenset(name for name in world.LOOK if groups[0][name])
        several = {letter for letter, group in zip("abc", groups, strict=False) if group["count"] > 1}
        kinds = [(len(groups), bool(scene["relations"]), said, bool(scene["background"])) for said in (None, looks)]
        fits = [pattern for kind in kinds for pattern, single in patterns.get(kind, ()) if not single & several]
        if not fits:
            return super().prompt(scene)
        pattern = self.rng.choice(fits)
        slots = dict.fromkeys(SLOT.findall(pattern))
        order = dict.fromkeys(slot[0] for slot in slots if DESCRIBES.fullmatch(slot))
        self.said = ["abc".index(letter) for letter in order]
        self.table, self.groups, self.shown, self.spoken = other_users.TABLES[self.korean], groups, groups, {}
        self.shapes = {group["shape"] for group in groups}
        last = sorted(slots, key=lambda slot: slot.endswith("_ref"))  # they repeat words of the others
        return other_users.tidied(self._say(pattern, **{slot: self._value(slot, scene) for slot in last}))
