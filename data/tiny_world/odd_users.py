"""Users whose prompts have odd structures, in English and Korean: for pretraining, so that any way of asking is read.

They correct themselves, deny, count indirectly, write lists, tables and code, and say looks for several shapes at
once. No prompt file is made of these.
"""

import free_users
import odd_words
import users
import world


class OddSpeaker(free_users.FreeSpeaker):
    """A user whose prompts have odd structures; arguments and attributes as for `Speaker`."""

    def _corrected(self, right: str, name: str, choices) -> str:
        """Return a word after a slip of the tongue: the `name` of the world that it stands for is not the slip."""
        slip = self.rng.choice([other for other in choices if other != name])
        if not self.korean:
            return self.rng.choice(odd_words.CORRECTIONS).format(wrong=slip, right=right)
        sized = {"small": "작은 거", "big": "큰 거"}
        wrong = sized.get(slip) or odd_words.COLOR_NOUNS.get(slip) or users.KOREAN[slip][0]
        template = self.rng.choice(odd_words.KOREAN_CORRECTIONS)
        return template.replace("}이 아니라", "}" + users._particle(wrong, "이가") + " 아니라").format(
            wrong=wrong, right=right
        )

    def _noun(self, group: dict) -> str:
        """Return the word for a group's shape, sometimes a symbol, sometimes after a slip."""
        shape = group["shape"]
        if not shape:
            return "도형" if self.korean else world.plural("shape", group["count"])
        if self.rng.random() < 0.06:
            self.spoken[shape] = odd_words.SYMBOLS[shape]
            return odd_words.SYMBOLS[shape]
        word = self.word(shape) if self.korean else world.plural(self.word(shape), group["count"])
        if self.rng.random() < 0.08:
            free = [other for other in world.SHAPES if other not in self.shapes] or ["heart"]
            slips = free if self.korean else [world.plural(other, group["count"]) for other in free]
            return word if self.korean and free == ["heart"] else self._corrected(word, "", slips)
        return word

    def _looks(self, group: dict) -> list[str]:
        """Return the words for size and colour that were said, in any order; one may come after a slip."""
        said = [(name, group[name]) for name in ("size", "color") if group[name]]
        slip = self.rng.choice(said)[0] if said and self.rng.random() < 0.18 else None
        words = []
        for name, value in self.rng.sample(said, len(said)):
            word = self.word(value)
            while word.endswith("고"):  # "small and": a colour would have to follow
                word = self.word(value)
            choices = list(world.SIZES) if name == "size" else list(world.COLORS)
            words.append(self._corrected(word, value, choices) if name == slip else word)
        return words

    def _english_phrase(self, group: dict) -> str:
        if self.rng.random() < 0.25:
            return super()._english_phrase(group)
        choose, count = self.rng.choice, group["count"]
        icon = odd_words.EMOJI.get(group["shape"], {}).get(group["color"])
        if icon and self.rng.random() < 0.12:
            size = self.word(group["size"]) if group["size"] else ""
            return f"{size} {icon if count == 1 else choose((icon * count, f'{icon} x{count}'))}".strip()
        noun, looks = self._noun(group), self._looks(group)
        number = self.word(world.NUMBER_WORDS[count])
        form = self.rng.random()
        if form < 0.15:
            number = choose(odd_words.BEFORE[count])
        elif form < 0.2:
            number = self._corrected(world.NUMBER_WORDS[count], world.NUMBER_WORDS[count], world.NUMBER_WORDS[1:5])
        elif form < 0.35:
            said = choose(odd_words.AFTER)
            said = said.format(n=count if said[0] in "x×" else choose((count, world.NUMBER_WORDS[count])))
            return f"{' '.join([*looks, noun])} {said}".replace(" ,", ",")
        if looks and self.rng.random() < 0.35:
            kept = looks[:-1] if self.rng.random() < 0.4 else []
            noun = choose(odd_words.LOOKS_AFTER).format(
                noun=noun, looks=choose((" and ", ", ", " + ")).join(looks[len(kept) :])
            )
            looks = kept
        text = " ".join([*looks, noun])
        return users._with_article(text) if number == "a" else f"{number} {text}"

    def _korean_phrase(self, group: dict) -> str:
        if self.rng.random() < 0.25:
            return super()._korean_phrase(group)
        choose, count = self.rng.choice, group["count"]
        icon = odd_words.EMOJI.get(group["shape"], {}).get(group["color"])
        if icon and self.rng.random() < 0.1:
            size = choose(users.KOREAN[group["size"]][:3]) if group["size"] else ""
            return f"{size} {icon * count}".strip()
        noun, num = self._noun(group), self.word(world.NUMBER_WORDS[count])
        form = self.rng.random()
        if form < 0.25:
            num = choose(odd_words.KOREAN_COUNTS[count])
        elif form < 0.32:
            right = world.NUMBER_WORDS[count]
            num = self._corrected(users.KOREAN[right][1 if count == 1 else 0], right, world.NUMBER_WORDS[1:5])
        if self.rng.random() < 0.35 and (group["size"] or group["color"]):
            size, color = group["size"], group["color"]
            looks = [choose((*odd_words.SIZE_NOUNS[size], *free_users.KOREAN_SIZED[size]))] if size else []
            looks += [choose((odd_words.COLOR_NOUNS[color], odd_words.COLOR_NOUNS[color] + "으로"))] if color else []
            looks = choose((", ", " ", "/")).join(self.rng.sample(looks, len(looks)))
            text = choose(odd_words.KOREAN_LOOKS_AFTER).format(noun=noun, num=num, looks=looks)
            return " ".join(text.replace(" ,", ",").replace(" :", ":").split())
        looks = self._looks(group)
        if self.rng.random() < 0.12:
            return " ".join([choose(odd_words.KOREAN_NUMBERS[count]), *looks, noun])
        return " ".join(word for word in (*looks, noun, num) if word)

    def _name(self, groups: list[dict], index: int) -> str | None:
        """Return how to refer to a group that was said: by its shape, if no other has it; None if that can't be."""
        shape = groups[index]["shape"]
        if not shape or [group["shape"] for group in groups].count(shape) > 1:
            return None
        return users.KOREAN[shape][0] if self.korean else "the " + world.plural(shape, groups[index]["count"])

    def _apart(self, groups: list[dict], name: str) -> tuple[list[dict], list[str]]:
        """Return the groups without a look, and sentences that say this look, for all at once or for each."""
        choose, values = self.rng.choice, [group[name] for group in groups]
        names = [self._name(groups, index) for index in range(len(groups))]
        if len(groups) == 1 or None in values:
            return groups, []
        bare = [{**group, name: None} for group in groups]

        def look(value: str) -> str:
            korean = choose(odd_words.SIZE_NOUNS.get(value) or (odd_words.COLOR_NOUNS.get(value),))
            return korean if self.korean else self.word(value)

        if len(set(values)) == 1 and self.rng.random() < 0.4:
            return bare, [self._alike(values[0], name, len(groups))]
        if len(set(values)) == 1:
            return bare, [
                choose((odd_words.KOREAN_SHARED if self.korean else odd_words.SHARED)[name]).format(
                    look=look(values[0])
                )
            ]
        if None in names and (not self.ordered or name == "color"):
            return groups, []
        if None in names:
            ordinals = ("첫째는", "둘째는", "셋째는") if self.korean else ("the first", "the second", "the third")
            return bare, [", ".join(f"{nth} {look(value)}" for nth, value in zip(ordinals, values, strict=False))]
        if len(set(values[1:])) == 1 and self.rng.random() < 0.5:
            rest = (
                choose(("나머지는", "다른 건"))
                if self.korean
                else choose(("the rest", "the other shapes", "not so the rest:"))
            )
            first = names[0] + users._particle(names[0], "은는") if self.korean else names[0]
            return bare, [f"{first} {look(values[0])}, {rest} {look(values[1])}"]
        joint = choose((" ", "는 꼭 ", ": ")) if self.korean else choose((" ", ": ", " = ", " must be "))
        said = [f"{shape}{joint}{look(value)}" for shape, value in zip(names, values, strict=True)]
        return bare, [choose((", ", " / ", "; ")).join(said)]

    def _phrases(self, groups: list[dict]) -> list[str]:
        """Return the words for each group; a later one may have the colour or size of an earlier one by reference."""
        phrases = []
        for index, group in enumerate(groups):
            same, said = "", dict(group)
            for name in ("color", "size"):
                like = [
                    i for i in range(index) if group[name] and groups[i][name] == group[name] and self._name(groups, i)
                ]
                if like and not same and self.rng.random() < 0.25:
                    other, said[name] = self._name(groups, like[0]), None
                    words = ("색", "크기") if self.korean else ("colour", "size")
                    what = words[name == "size"]
                    forms = (
                        f"{what}{users._particle(what, '은는')} {other}랑 똑같은",
                        f"{other}{users._particle(other, '과와')} 같은 {what}의",
                    )
                    forms = forms if self.korean else (f"of the same {what} as {other}", f"matching {other} in {what}")
                    same = self.rng.choice(forms).replace("원랑", "원이랑").replace("형랑", "형이랑")
            text = self.phrase(said)
            phrases.append((f"{same} {text}" if self.korean else f"{text} {same}").strip() if same else text)
        return phrases

    def _placed(self, scene: dict, phrases: list[str]) -> str:
        """Return the groups' words with those for their places, or in a list."""
        relations = [relation for _, relation, _ in scene["relations"]]
        choose, korean = self.rng.choice, self.korean
        if self.rng.random() < 0.12:
            return super()._placed(scene, phrases)
        if not relations:
            if not korean and self.rng.random() < 0.3 and len(phrases) > 1:
                mark = choose(odd_words.LISTED[1:5] + odd_words.LISTED[6:])
                return choose(("\n", " ")).join(mark.replace("{}", phrase) for phrase in phrases).rstrip("+/;, ")
            chain = choose(odd_words.KOREAN_CHAINS if korean else odd_words.CHAINS) if len(phrases) > 1 else ("{}",)
            said = [step.replace("{}", phrase) for step, phrase in zip(chain, phrases, strict=False)]
            return choose(("\n", ", ", " ", ", ", "; ")).join(said)
        parts = dict(zip("abc", phrases, strict=False))
        at, inverses = (
            free_users.KOREAN_AT if korean else free_users.AT,
            [world.RELATIONS[name][0] for name in relations],
        )
        for end, relation, inverse in zip(("", "2"), relations, inverses, strict=False):
            parts |= {f"rel{end}": self.word(relation), f"inv{end}": self.word(inverse)}
        parts |= {
            f"its_{x}": choose(free_users.ITS[name]).rstrip(",") for x, name in zip("bc", inverses, strict=False)
        }
        parts |= {"its_a": choose(free_users.ITS[relations[0]]).rstrip(",")}
        parts |= {"a_at": choose(at[relations[0]]), "b_at": choose(at[inverses[0]])}
        sides = sorted((users.SIDES[relation] for relation in relations), key=("top", "bottom", "left", "right").index)
        parts["corner"] = " ".join(odd_words.CORNERS[side] for side in sides) if korean else " ".join(sides)
        name = self._name(scene["objects"], 0)
        parts |= {"ra": name or ("처음 거" if korean else "the first one"), "a_short": name or "처음 거"}
        for x in "ab":
            for key, pair in {"topic": "은는", "subject": "이가", "object": "을를", "with": "과와"}.items():
                parts[f"{x}_{key}"] = users._particle(parts[x], pair)
        if len(relations) == 2:
            return choose(odd_words.KOREAN_TRIPLED if korean else odd_words.TRIPLED).format(**parts)
        return choose(odd_words.KOREAN_PAIRED if korean else odd_words.PAIRED).format(**parts)

    def _structured(self, scene: dict) -> str:
        """Return the shapes and places as records: code, tables or key and value."""
        choose, korean = self.rng.choice, self.korean
        keys = {name: choose(words) for name, words in (odd_words.KOREAN_KEYS if korean else odd_words.KEYS).items()}
        names, wrap = choose(("ABC", "123", ("first", "second", "third"), "xyz")), choose(odd_words.WRAPS)
        equals, comma, bare = (
            choose(("=", ": ", ":", " = ", " is ")),
            choose((", ", "; ", " | ", " ")),
            self.rng.random() < 0.3,
        )
        order, records = self.rng.sample(list(keys), 4), []
        for name, group in zip(names, scene["objects"], strict=False):
            values = {key: group[key] and self.word(group[key]) for key in world.LOOK} | {"count": str(group["count"])}
            if korean:
                values |= {key: nouns[group[key]] for key, nouns in (("color", odd_words.COLOR_NOUNS),) if group[key]}
                values |= {"size": group["size"] and {"small": "작음", "big": "큼"}[group["size"]]}
            fields = [(keys[key], values[key]) for key in order if values[key]]
            fields = [value if bare and key != keys["count"] else f"{key}{equals}{value}" for key, value in fields]
            record = wrap.format(comma.join(fields))
            records.append(f"{name}{choose((':', ' =', '.'))} {record}" if scene["relations"] else record)
        for first, relation, second in scene["relations"]:
            word = self.word(relation)
            records.append(
                f"{names[first]}{'은' if names[first] in '13' else '는'} {names[second]} {word}"
                if korean
                else f"{names[first]} {word} {names[second]}"
            )
        return choose(("\n", "; ", " // ", "\n")).join(records)

    def _parts(self, scene: dict) -> list[str]:
        """Return what the user says of the shapes, in one or several sentences."""
        self.shapes = {group["shape"] for group in scene["objects"]}
        if self.rng.random() < 0.13:
            return [self._structured(scene)]
        groups, sentences = [dict(group) for group in scene["objects"]], []
        self.ordered = not scene["relations"]
        for name in ("size", "color"):
            if self.rng.random() < 0.28:
                groups, said = self._apart(groups, name)
                sentences += said
        return [self._placed(scene, self._phrases(groups)), *sentences]

    def _draft(self, scene: dict) -> str:
        """Return a prompt of any length: opening, shapes, closing, and the background anywhere among them."""
        choose, korean, ours = self.rng.choice, self.korean, self.rng.random() < 0.8
        parts, ground, before = self._parts(scene), "", False
        others = [shape for shape in world.SHAPES if shape not in self.shapes and None not in self.shapes]
        not_bg = choose([name for name in world.BACKGROUNDS if name != scene["background"]])
        values = {"thing": choose(free_users.THINGS), "person": choose(free_users.PERSONS)}
        values |= {"not_shape": world.plural(choose(others or ["star"])), "surface": choose(free_users.SURFACES)}
        values |= {"not_bg": not_bg, "not_noun": users.KOREAN_NOUNS[not_bg]}
        if background := scene["background"]:
            values["noun"] = users.KOREAN_NOUNS[background]
            values |= {"bg": self.word(background), "adverb": choose(free_users.KOREAN_DYED[background])}
            values["a_bg"] = users._with_article(values["bg"])
            grounds = odd_words.KOREAN_GROUNDS if korean else odd_words.GROUNDS
            grounds = grounds if ours else free_users.KOREAN_BACKGROUNDS if korean else free_users.BACKGROUNDS
            ground = choose(grounds).format(**values)
            place = choose((0, len(parts), self.rng.randint(0, len(parts))))
            before = place == 0 and self.rng.random() < 0.6
            parts = parts if before else [*parts[:place], ground, *parts[place:]]
        text = choose((", ", ". ", "; ", "\n", " - ", "... ", " ~ " if korean else " and ", "! ")).join(parts)
        openings = (
            (free_users.KOREAN_OPENINGS, odd_words.KOREAN_OPENINGS)
            if korean
            else (free_users.OPENINGS, odd_words.OPENINGS)
        )
        closings = (
            (free_users.KOREAN_CLOSINGS, odd_words.KOREAN_CLOSINGS)
            if korean
            else (free_users.CLOSINGS, odd_words.CLOSINGS)
        )
        opening, closing = choose(openings[ours]).format(**values), choose(closings[ours]).format(**values)
        glue = choose((", ", " ", ". ", "\n")) if closing[:1].isalpha() else choose(("", " "))
        start = f"{ground}{choose((', ', '. ', ': ', chr(10)))}" if before else ""
        return f"{start}{opening} {text}{glue}{closing}".strip().replace(",,", ",")

    def prompt(self, scene: dict) -> str:
        """Return the whole prompt, of 45 words at most."""
        text = self._draft(scene)
        for _ in range(20):
            if len(text.split()) <= 45:
                break
            text = self._draft(scene)
        return text
