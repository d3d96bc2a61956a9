"""Users who put a prompt together freely, in English and Korean: for pretraining, since a real policy has read such.

No prompt file is made of these. An opening, the shapes, the background and a closing are chosen by themselves and
joined in any order; a look may stand before or after its shape, in brackets, or in a sentence of its own.
"""

import users
import world


OPENINGS = (
    *("", "", "", "please draw", "draw me", "can you draw", "could you do", "i need", "i want", "i'd love"),
    *("make", "show", "show me", "gimme", "let's have", "we need", "there should be", "there is"),
    *("i am looking for", "image of", "just", "only", "what about", "let's try", "new idea:", "hello! i need"),
    *("hi, can i have", "do you know how to draw", "for {thing}:", "for {thing} i need", "for {thing} we want"),
    *("this is for {thing}.", "{thing}:", "it's for {thing},", "{person} wants", "{person} asked for"),
    *("{person} told me to get", "{person} says: draw", "would it be possible to get", "imagine", "picture"),
    *("i think of", "once more:", "ok next:", "sorry, i meant", "something like", "no {not_shape}, only"),
)
THINGS = (
    *("a logo", "my homework", "a birthday card", "a poster", "a board game", "a road sign", "the website"),
    *("a sticker", "a quilt", "a flag", "my slides", "a flyer", "the menu", "a puzzle", "a t-shirt"),
    *("an app icon", "school", "a stamp"),
)
PERSONS = (
    *("my son", "my daughter", "the boss", "a client", "a friend", "my wife", "our art teacher", "grandma"),
    "the kids",
)
CLOSINGS = (
    *("", "", "", "", "please", "pls", "thanks", "thank you!", "nothing else", "and nothing else", "that's all"),
    *("no text", "can you do that?", "if possible", "ok?", "very simple", "flat style", "!", "!!", ":)", "thx"),
    *("nothing more", "?", "no {not_shape}", "no {not_shape} please", "not on {not_bg}"),
    *("without any {not_shape}", "can it be done?", "a lot of thanks"),
)
BACKGROUNDS = (
    *("{bg} background", "{bg} bg", "background {bg}", "the background is {bg}", "background: {bg}"),
    *("{bg} behind it", "the background should be {bg}", "make the background {bg}"),
    *("use {bg} for the background", "on {bg}", "on {bg}", "on {a_bg} {surface}", "on {a_bg} {surface}"),
    *("the {surface} is {bg}", "everything behind is {bg}", "the rest is {bg}", "all the rest {bg}"),
    *("{bg} backdrop", "with {a_bg} backdrop", "in front of {bg}", "set against {bg}", "{bg}", "{bg} {surface}"),
    *("the background {bg}, not {not_bg}", "{bg} and not {not_bg} behind", "{bg} all around"),
    "fill the rest with {bg}",
)
SURFACES = (
    *("sheet", "card", "wall", "page", "board", "screen", "surface", "canvas", "paper", "table", "field"),
    "ground",
)
PLACED = (
    *("{first} {rel} {second}", "{first} is {rel} {second}", "put {first} {rel} {second}"),
    *("{first} goes {rel} {second}", "{first}. {its} {second}", "{first}, and {its} {second}"),
    *("{first}, {its} {second}", "{first} and {second} {its}", "{second} with {first} {rel} it"),
    *("{second}. {rel} it, {first}", "{second} first, then {first} {rel} it", "{second} lies {inverse} {first}"),
    *("{first} should be {rel} {second}", "i see {first} {rel} {second}"),
    *("{first_at} {first}, {second_at} {second}", "{first_at}: {first}. {second_at}: {second}"),
    *("{second_at} {second}, {first_at} {first}", "{first} {first_at}, {second} {second_at}"),
    *("{second} {second_at} and {first} {first_at}", "{first} {first_at} and {second} {second_at}"),
)
PLACED_THREE = (
    *("{first}. {its} {second}. {its2} {third}", "{first}, {its} {second}, {its2} {third}"),
    *("{first} with {second} {its} and {third} {its2}", "{first} {rel} {second}, and {rel2} {third}"),
    *("{first}. {second} goes {its}, {third} goes {its2}", "{first}, {second} {its}, {third} {its2}"),
)
# Where the other one is, as seen from the first; then where a shape is in the image.
ITS = {
    "left of": ("on its left", "to its left", "left of it", "beside it on the left", "next to it, on the left,"),
    "right of": ("on its right", "to its right", "right of it", "beside it on the right", "next to it, on the right,"),
    "above": ("above it", "over it", "on top of it", "higher up"),
    "below": ("below it", "under it", "beneath it", "further down"),
}
AT = {
    "left of": ("on the left", "left", "at the left", "on the left side", "left side"),
    "right of": ("on the right", "right", "at the right", "on the right side", "right side"),
    "above": ("at the top", "on top", "up top", "on the top", "top"),
    "below": ("at the bottom", "on the bottom", "down below", "bottom"),
}

KOREAN_OPENINGS = (
    *("", "", "", "", "혹시", "저기요", "안녕하세요,", "숙제인데", "로고로 쓸 건데요", "카드에 넣게", "그냥"),
    *("딸이 원해요.", "급해요!", "학교에서 쓸 거예요.", "생일 카드인데", "이번엔", "제가 원하는 건"),
    *("간단하게", "스티커용", "친구가 부탁했는데", "포스터에 쓸"),
)
KOREAN_CLOSINGS = (
    *("", "", "", "그려줘", "그려주세요", "그려 주세요", "그려 줄래?", "그려주실 수 있을까요?", "부탁해요"),
    *("부탁해", "부탁드립니다", "있으면 좋겠어요", "있으면 좋겠어", "만들어줘", "해줘", "해 주세요", "요"),
    *("~", "!!", "넣어줘", "주세요", "보여줘", "필요해요", "있어야 해요", "다른 건 없이", "그것만", "ㅎㅎ"),
    *("가능할까요?", "그림", "이미지", "넣어 주세요", "그려줄 수 있어?"),
)
KOREAN_BACKGROUNDS = (
    *("배경 {noun}", "배경은 {noun}", "배경은 {noun}으로", "배경은 {noun}으로요", "{bg} 배경", "{bg} 배경에"),
    *("{bg} 종이에", "{bg} 바탕", "{bg} 바탕에", "배경색은 {noun}", "배경은 {adverb}"),
    *("배경은 {adverb} 해줘", "뒤는 {noun}", "나머지는 {noun}", "배경은 {noun}이면 좋겠어", "{bg} 배경으로"),
    *("{bg} 벽에", "{bg} 화면에", "배경을 {adverb}", "배경은 {noun}이요", "{noun} 배경", "{bg} 도화지에"),
    "{not_noun} 말고 {noun} 배경",
)
KOREAN_PLACED = (
    *("{second} {rel} {first}", "{first} {inverse} {second}", "{first_at}에 {first}, {second_at}에 {second}"),
    *("{first_at}에는 {first} {second_at}에는 {second}", "{first_at}엔 {first}, {second_at}엔 {second}"),
    *("{first_at} {first} {second_at} {second}", "{second} {rel} {first} 있게"),
    *("{first}, 그 {inverse} {second}", "{second_at}에 {second} 두고 {first_at}에 {first}"),
    *("{first_subject} {second} {rel} 있는 거", "{first_topic} {second} {rel}", "{second}의 {rel} {first}"),
)
KOREAN_PLACED_THREE = (
    "{first} {inverse} {second}, {inverse2} {third}",
    "{first} 그리고 {inverse} {second}, {inverse2}는 {third}",
    "{first}. 그 {inverse} {second}, 그 {inverse2} {third}",
)
KOREAN_AT = {
    "left of": ("왼쪽", "왼편", "좌측"),
    "right of": ("오른쪽", "오른편", "우측"),
    "above": ("위", "위쪽", "맨 위"),
    "below": ("아래", "밑", "아래쪽"),
}
KOREAN_SIZED = {
    "small": ("작게", "작은 걸로", "작은 거", "조그맣게", "작게요", "작은 거로"),
    "big": ("크게", "큰 걸로", "큰 거", "커다랗게", "크게요", "큰 거로"),
}
KOREAN_DYED = {
    "white": ("하얗게", "하얀색으로"),
    "black": ("까맣게", "검정으로"),
    "gray": ("회색으로", "회색빛으로"),
    "pink": ("분홍으로", "핑크로"),
    "brown": ("갈색으로", "밤색으로"),
}


class FreeSpeaker(users.Speaker):
    """A user who puts a prompt together freely; arguments and attributes as for `Speaker`."""

    def _english_phrase(self, group: dict) -> str:
        size, color = (group[name] and self.word(group[name]) for name in ("size", "color"))
        number, noun = self.word(world.NUMBER_WORDS[group["count"]]), group["shape"] and self.word(group["shape"])
        noun, one = world.plural(noun or "shape", group["count"]), "one" if group["count"] == 1 else "ones"
        before, after = [], []
        for look in self.rng.sample([size, color], 2):
            if look and self.rng.random() < 0.72:
                before.append(look)
            elif look:
                after.append(look)
        phrase = " ".join([*before, noun])
        if number == "a":
            number = self.rng.choice(("a", "a", "a", "", "the", "one", "some"))
        phrase = users._with_article(phrase) if number == "a" else f"{number} {phrase}".strip()
        if after:
            words = self.rng.choice((", ", " and ")).join(after)
            that_is = f"that {'is' if one == 'one' else 'are'} {words}"
            forms = (f", {words}", f", {words},", f" ({words})", f", {words} {one}", f" {that_is}", f", but {words}")
            phrase += self.rng.choice((*forms, f" in {words}") if after == [color] else forms)
        return phrase

    def _korean_phrase(self, group: dict) -> str:
        size, color = (group[name] and self.word(group[name]) for name in ("size", "color"))
        noun = self.word(group["shape"]) if group["shape"] else "도형"
        number = self.word(world.NUMBER_WORDS[group["count"]])
        after = ""
        if size and (size.endswith("고") or self.rng.random() < 0.3):
            size, after = None, self.rng.choice(KOREAN_SIZED[group["size"]])
        before = [word for word in self.rng.sample([size, color], 2) if word]
        tail = [after, number] if self.rng.random() < 0.5 else [number, after]
        return " ".join(word for word in (*before, noun, *tail) if word)

    def body(self, scene: dict) -> str:
        """Return what the user says of the shapes and their places; looks may come afterwards, for one or for all."""
        groups, after = [dict(group) for group in scene["objects"]], []
        shapes = [group["shape"] for group in groups]
        for name in ("size", "color"):
            values = {group[name] for group in groups}
            if len(groups) > 1 and len(values) == 1 and None not in values and self.rng.random() < 0.5:
                after.append(self._alike(groups[0][name], name, len(groups)))
                groups = [{**group, name: None} for group in groups]
        one_by_one = not self.korean and len(set(shapes)) == len(shapes) and None not in shapes
        if one_by_one and self.rng.random() < 0.15:
            for name in self.rng.choice((["size"], ["color"], ["size", "color"])):
                said = [(group["shape"], group[name]) for group in groups if group[name] and group["count"] == 1]
                sentences = [
                    f"the {self.word(shape)} {self.rng.choice(('is', 'should be', 'must be'))} {self.word(look)}"
                    for shape, look in said
                ]
                after += sentences
                kept = [shape for shape, _ in said]
                groups = [{**group, name: None} if group["shape"] in kept else group for group in groups]
        body = self._placed(scene, [self.phrase(group) for group in groups])
        joint = self.rng.choice((", ", ". ", "; ")) if not self.korean else self.rng.choice((", ", " ", ". "))
        return joint.join([body, *after])

    def _alike(self, look: str, name: str, count: int) -> str:
        if self.korean:
            word = self.rng.choice(KOREAN_SIZED[look]) if name == "size" else self.word(look) + " 걸로"
            return f"{self.rng.choice(('둘 다', '모두') if count == 2 else ('전부', '셋 다', '다', '모두'))} {word}"
        all_of_them = (
            ("both", "they are both", "both of them", "each")
            if count == 2
            else ("all", "they're all", "all of them", "each")
        )
        return f"{self.rng.choice((*all_of_them, 'make them', 'they should be'))} {self.word(look)}"

    def _placed(self, scene: dict, phrases: list[str]) -> str:
        relations = [relation for _, relation, _ in scene["relations"]]
        if not relations:
            return self._listed(phrases)
        inverses = [world.RELATIONS[relation][0] for relation in relations]
        at = KOREAN_AT if self.korean else AT
        parts = dict(zip(("first", "second", "third"), phrases, strict=False))
        parts |= {
            "first_subject": phrases[0] + users._particle(phrases[0], "이가"),
            "first_topic": phrases[0] + users._particle(phrases[0], "은는"),
        }
        for end, relation, inverse in zip(("", "2"), relations, inverses, strict=False):
            parts |= {
                f"rel{end}": self.word(relation),
                f"inverse{end}": self.word(inverse),
                f"its{end}": self.rng.choice(ITS[inverse]),
            }
        parts |= {"first_at": self.rng.choice(at[relations[0]]), "second_at": self.rng.choice(at[inverses[0]])}
        if len(relations) == 2:
            return self.rng.choice(KOREAN_PLACED_THREE if self.korean else PLACED_THREE).format(**parts)
        return self.rng.choice(KOREAN_PLACED if self.korean else PLACED).format(**parts)

    def prompt(self, scene: dict) -> str:
        """Return the whole prompt: opening, shapes, background and closing, the background first or last."""
        rng, choose, korean = self.rng, self.rng.choice, self.korean
        shapes = {group["shape"] for group in scene["objects"]}
        others = [shape for shape in world.SHAPES if shape not in shapes and None not in shapes]
        not_bg = choose([name for name in world.BACKGROUNDS if name != scene["background"]])
        values = {"thing": choose(THINGS), "person": choose(PERSONS), "surface": choose(SURFACES), "not_bg": not_bg}
        values |= {"not_shape": world.plural(choose(others or ["star"])), "not_noun": users.KOREAN_NOUNS[not_bg]}
        parts = [self.body(scene)]
        if background := scene["background"]:
            word = self.word(background)
            values |= {"bg": word, "a_bg": users._with_article(word)}
            values |= {
                "noun": choose((users.KOREAN_NOUNS[background], word)),
                "adverb": choose(KOREAN_DYED[background]),
            }
            clause = choose(KOREAN_BACKGROUNDS if korean else BACKGROUNDS).format(**values)
            parts.insert(0 if rng.random() < (0.5 if korean else 0.2) else 1, clause)
        text = choose((", ", " ", " ", ". ") if korean else (", ", ", ", " ", ". ", " - ", "; ", "! ")).join(parts)
        opening = choose(KOREAN_OPENINGS if korean else OPENINGS).format(**values)
        closing = choose(KOREAN_CLOSINGS if korean else CLOSINGS).format(**values)
        glue = choose((", ", " ", ". ")) if closing[:1].isalpha() else choose(("", " "))
        return f"{opening} {text}{glue}{closing}".strip().replace(",,", ",")
