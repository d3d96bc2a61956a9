"""The users of the tiny world: prompts as people type them, in English and Korean, for a scene of `world.py`.

A prompt is a *body* (the groups of shapes and their relations) in a *frame* (the sentence around it, with the
background). Frames, bodies and words in the `HELD_OUT` collections are for validation alone: no training prompt has
one. The policy was pretrained on them, too, as a real one knows words and phrases that its training prompts lack.
"""

import itertools
import random

import world


# --------------------------------------------------------------------------------------------------------- vocabulary

WORDS = {
    "circle": ("circle", "disk", "disc", "ball", "dot", "round shape"),
    "square": ("square", "box", "block", "tile", "four-sided shape"),
    "triangle": ("triangle", "pyramid", "wedge", "three-cornered shape"),
    "cross": ("cross", "plus", "plus sign", "crosshair"),
    "red": ("red", "crimson", "scarlet", "ruby", "cherry-red"),
    "green": ("green", "emerald", "jade", "grass-green", "forest-green"),
    "blue": ("blue", "azure", "navy", "sapphire", "ocean-blue"),
    "yellow": ("yellow", "lemon", "golden", "sunny", "canary-yellow"),
    "purple": ("purple", "violet", "lilac", "plum", "lavender"),
    "orange": ("orange", "tangerine", "apricot", "pumpkin", "carrot-colored"),
    "white": ("white", "snowy", "ivory", "chalky", "milk-white"),
    "black": ("black", "ebony", "jet-black", "inky", "pitch-black"),
    "gray": ("gray", "grey", "ash-gray", "silver"),
    "pink": ("pink", "rosy", "blush", "bubblegum-pink"),
    "brown": ("brown", "chocolate", "coffee-colored", "wood-brown"),
    "small": ("small", "tiny", "little", "mini", "wee", "petite"),
    "big": ("big", "large", "huge", "giant", "massive", "oversized"),
    "left of": ("left of", "to the left of", "on the left side of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right side of", "on the right of"),
    "above": ("above", "over", "higher than", "on top of"),
    "below": ("below", "under", "beneath", "lower than"),
    "one": ("a", "one", "a single", "1"),
    "two": ("two", "2", "a pair of", "a couple of"),
    "three": ("three", "3", "a trio of", "3x"),
    "four": ("four", "4", "a group of four", "4x"),
}
HELD_OUT_WORDS = {
    "circle": ("orb", "round thing"),
    "square": ("cube", "quad"),
    "triangle": ("cone", "trigon"),
    "cross": ("plus symbol", "addition sign"),
    "red": ("vermilion", "blood-red"),
    "green": ("shamrock", "leaf-green"),
    "blue": ("cobalt", "indigo"),
    "yellow": ("mustard", "banana-colored"),
    "purple": ("amethyst", "grape-colored"),
    "orange": ("amber", "rust-orange"),
    "white": ("alabaster", "paper-white"),
    "black": ("onyx", "coal-black"),
    "gray": ("slate", "concrete-gray"),
    "pink": ("salmon", "fuchsia"),
    "brown": ("chestnut", "mahogany"),
    "small": ("teeny", "miniature"),
    "big": ("enormous", "gigantic"),
    "left of": ("west of", "further left than"),
    "right of": ("east of", "further right than"),
    "above": ("north of", "atop"),
    "below": ("south of", "underneath"),
    "one": ("exactly one",),
    "two": ("a duo of", "exactly two"),
    "three": ("a triplet of", "exactly three"),
    "four": ("a foursome of", "exactly four"),
}
KOREAN = {
    "circle": ("원", "동그라미", "동그란 거", "원형"),
    "square": ("네모", "사각형", "정사각형", "네모난 거"),
    "triangle": ("세모", "삼각형", "세모난 거"),
    "cross": ("십자가", "더하기", "십자", "플러스"),
    "red": ("빨간", "빨간색", "빨강", "붉은"),
    "green": ("초록", "초록색", "녹색"),
    "blue": ("파란", "파란색", "파랑", "푸른"),
    "yellow": ("노란", "노란색", "노랑", "샛노란"),
    "purple": ("보라", "보라색", "자주색"),
    "orange": ("주황", "주황색", "귤색"),
    "white": ("하얀", "흰", "흰색", "하얀색"),
    "black": ("검은", "까만", "검정", "검은색"),
    "gray": ("회색", "쥐색"),
    "pink": ("분홍", "분홍색", "핑크"),
    "brown": ("갈색", "밤색"),
    "small": ("작은", "조그만", "조그마한", "작고"),
    "big": ("큰", "커다란", "큼직한", "크고"),
    "left of": ("왼쪽에", "좌측에", "왼편에"),
    "right of": ("오른쪽에", "우측에", "오른편에"),
    "above": ("위에", "위쪽에", "바로 위에"),
    "below": ("아래에", "밑에", "아래쪽에"),
    "one": ("하나", "한 개", "1개", ""),
    "two": ("두 개", "2개", "둘"),
    "three": ("세 개", "3개", "셋"),
    "four": ("네 개", "4개", "넷"),
}
HELD_OUT_KOREAN = {
    "circle": ("둥근 거",),
    "square": ("네모꼴",),
    "triangle": ("세모꼴",),
    "cross": ("덧셈표",),
    "red": ("새빨간",),
    "green": ("초록빛",),
    "blue": ("새파란",),
    "yellow": ("노랑색",),
    "purple": ("보랏빛",),
    "orange": ("오렌지색",),
    "white": ("새하얀",),
    "black": ("시커먼",),
    "gray": ("잿빛",),
    "pink": ("연분홍",),
    "brown": ("고동색",),
    "small": ("쪼끄만", "자그마한"),
    "big": ("대빵 큰", "거대한"),
    "left of": ("왼쪽으로",),
    "right of": ("오른쪽으로",),
    "above": ("위로",),
    "below": ("밑으로",),
    "one": ("딱 하나",),
    "two": ("두개",),
    "three": ("세개",),
    "four": ("네개",),
}

KOREAN_NOUNS = {"white": "흰색", "black": "검은색", "gray": "회색", "pink": "분홍색", "brown": "갈색"}

# ------------------------------------------------------------------------------------------------------------- frames

# {body} is what is said of the shapes, {bg} the background's word, {a_bg} the same with an article; {not_bg} another
# background, {not_color} and {not_shape} (in the plural) are in no group of the scene.
FRAMES = {
    "plain": (
        "{body} on {a_bg} background",
        "{body}, {bg} background",
        "{body} on {bg}",
        "{body} against {a_bg} backdrop",
        "{body} in front of {a_bg} wall",
        "a picture of {body} on {bg}",
        "an image with {body}, the background is {bg}",
        "draw {body} on {bg}",
        "show {body} over {a_bg} field",
        "give me {body} on {a_bg} backdrop",
    ),
    "order": (
        "{bg} background, {body}",
        "on {a_bg} background: {body}",
        "{a_bg} canvas with {body}",
        "the background is {bg}. there is {body}",
        "make it {bg} and put {body} on it",
        "{bg} paper, on it {body}",
        "in front of {a_bg} wall, {body}",
    ),
    "terse": (
        "{body} / {bg} bg",
        "bg={bg}, {body}",
        "{body}; background: {bg}",
        "{bg}. {body}.",
        "{body}, bg {bg}",
        "flat icon: {body}; {bg} fill",
    ),
    "polite": (
        "please draw {body} on {a_bg} background",
        "can you make {body}? {bg} background please",
        "could you paint {body} for me, with {bg} behind",
        "i need {body} on {bg}, thanks!",
        "would you be so kind as to draw {body} on {bg}?",
        "hello, may i have {body} with {a_bg} background? thank you",
        "i'd like {body}, and {bg} for the background, please",
    ),
    "chatter": (
        "hi! my kid wants {body}. make the background {bg} pls",
        "so i was thinking about a logo: {body}, on {bg}",
        "for my homework i need an image where there is {body} and the rest is {bg}",
        "my boss asked for {body} on {bg}, dont ask why",
        "ok so, {body}... and {bg} behind it i guess",
        "i'm designing a card and it needs {body} on {bg}. hope you can help",
        "it's for my daughter's birthday, she loves {bg}, so {bg} background and {body}",
        "minimalist poster, {body}, {bg} background, very clean",
    ),
    "negation": (
        "just {body} on {bg}, nothing else",
        "only {body}, no other shapes, {bg} background",
        "{body}, not on {not_bg} but on {bg}",
        "{body} please, and no {not_shape}. {bg} background",
        "no {not_color} in it: {body} on {bg}",
        "{body} on {bg}. no text, no border, no {not_shape}",
        "i don't want {not_shape}, i want {body} on {a_bg} background",
    ),
    "no_background": (
        "{body}",
        "draw {body}",
        "{body} please",
        "i just want {body}",
        "can i get {body}?",
        "a simple picture of {body}",
        "make {body}",
    ),
    "korean": (
        "{bg} 배경에 {body} 그려줘",
        "{bg} 배경에 {body}",
        "{body}, 배경은 {bg_noun}",
        "{bg} 배경으로 {body} 그려 주세요",
        "{body} 그림 부탁드려요. 배경은 {bg_noun}으로요",
        "{bg} 바탕에 {body}",
        "{bg} 종이 위에 {body} 있는 그림",
        "{body} 있는 이미지 만들어줘 배경은 {bg_noun}",
        "배경 {bg_noun}, {body}",
        "{body} 좀 그려줄래? 배경은 {bg_noun}이야",
        "로고용으로 {bg} 배경에 {body} 넣어 주세요",
        "{body}만 그려줘, 다른 건 빼고. 배경은 {bg_noun}",
        "안녕하세요, {bg} 배경에 {body} 그려 주실 수 있나요?",
        "{not_bg_noun} 말고 {bg} 배경에 {body}",
        "{bg} 배경에 {body_object} 그려줘",
        "{body_subject} 있는 그림 부탁해, 배경은 {bg_noun}",
        "배경을 {bg_noun}으로 하고 {body_object} 그려 주세요",
    ),
    "korean_no_background": ("{body} 그려줘", "{body}", "{body} 그림 하나 만들어 주세요", "{body} 보고 싶어"),
}
HELD_OUT_FRAMES = {
    "plain": ("{body}, with {bg} as the background color", "what would {body} look like on {bg}?"),
    "order": ("let the background be {bg} and let there be {body}", "behind everything {bg}, in front {body}"),
    "terse": ("[{bg}] {body}", "{body} | {bg}"),
    "polite": ("would you mind drawing {body}? it should be {bg} in the back", "kindly produce {body} upon {bg}"),
    "chatter": (
        "lol idk why but i really want {body} on {bg} rn",
        "hey there, long day... anyway, {body}, everything behind it {bg}, that would cheer me up",
    ),
    "negation": ("{bg} background (definitely not {not_bg}) with {body}", "{body} on {bg} without any {not_shape}"),
    "no_background": ("{body}, whatever background", "picture me {body}"),
    "korean": (
        "{bg} 배경인데 {body} 있게 해줘",
        "ㅎㅎ {body} 그려줄 수 있어? 배경은 {bg_noun}으로",
        "아이가 좋아할 그림이요. {body}, 배경은 {bg_noun}이면 좋겠어요",
    ),
    "korean_no_background": ("{body} 하나만 부탁해요",),
}
CATEGORIES = (
    *("plain", "order", "terse", "polite", "chatter", "negation", "left_out", "typo", "capitals", "korean"),
    "caption",  # of users who know how the generator likes it: nothing to improve, but something to spoil
)

# A body of two groups and a relation. {rel} and {inverse} are the user's words for "first is ... of second" and
# "second is ... of first"; {first_side} and {second_side} are places ("left", "top"); {it} is it or them.
RELATION_BODIES = (
    "{first} {rel} {second}",
    "{second} {inverse} {first}",
    "{first_side}: {first}, {second_side}: {second}",
    "{first} at the {first_side} and {second} at the {second_side}",
    "{first} on the {first_side}, {second} on the {second_side}",
    "{first} sitting {rel} {second}",
    "{first} that is {rel} {second}",
    "{first} placed {rel} {second}",
)
ODD_RELATION_BODIES = (
    "{rel} {second}, {first}",
    "{second}, and {rel} that {first}",
    "{first} with {second} {inverse} it",
    "at the {second_side} there is {second}, at the {first_side} {first}",
    "there is {second}. {rel} it is {first}",
    "first {second}, then {rel} it {first}",
)
HELD_OUT_RELATION_BODIES = (
    "the {first_side} one is {first}, the {second_side} one is {second}",
    "{second} has {first} {rel} it",
)
TRIPLE_BODIES = (
    "{first} {rel} {second} and {rel2} {third}",
    "{first}, {inverse} it {second}, {inverse2} it {third}",
    "{first}. {second} is {inverse} it and {third} is {inverse2} it",
    "{first} with {second} {inverse} it and {third} {inverse2} it",
)
HELD_OUT_TRIPLE_BODIES = ("start with {first}; {second} goes {inverse} it; {third} goes {inverse2} it",)
SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
KOREAN_SIDES = {"left of": "왼쪽", "right of": "오른쪽", "above": "위", "below": "아래"}
KOREAN_RELATION_BODIES = (
    "{second} {rel} {first}",
    "{first} {inverse} {second}",
    "{first_side}에는 {first}, {second_side}에는 {second}",
    "{first_side}에 {first} {second_side}에 {second}",
    "{second} 있고 {rel} {first}",
    "{second} {rel} {first} 있는 거",
)
HELD_OUT_KOREAN_RELATION_BODIES = ("{second_side}에 {second} 있고 {first_side}에 {first}",)
KOREAN_TRIPLE_BODIES = (
    "{first} {inverse} {second}, {inverse2} {third}",
    "{second} {rel} {first}, 그 {inverse2} {third}",
)
ALIKE = (", all {size}", ", all of them {size}", ", everything {size}")
ALIKE_PAIR = (", both {size}", ", the two of them {size}", ", both of them {size}")
KOREAN_ALIKE = (", 다 {size} 걸로", ", 모두 {size} 거", ", 전부 {size} 걸로")
JOINTS = (" and ", " and ", ", ", " plus ", " & ")
KOREAN_JOINTS = ("랑 ", "하고 ", ", ", " 그리고 ", "+")
KOREAN_TYPOS = {
    "왼쪽": "왼족", "오른쪽": "오른족", "빨간": "빨깐", "네모": "내모", "세모": "새모", "배경": "베경",
    "그려줘": "그려조", "동그라미": "동그래미", "큰": "킁", "조그만": "쪼그만",
}  # fmt: skip


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _particle(words: str, pair: str) -> str:
    """Return the first of a pair of Korean particles after a final consonant, else the second."""
    last = ord(words[-1]) - 0xAC00
    return pair[0] if 0 <= last < 11172 and last % 28 else pair[1]


class Speaker:
    """A user who says a scene, with words and patterns that `rng` chooses.

    Args:
        category: of `CATEGORIES`.
        held_out: whether a third of the choices are those that training never shows.

    Attributes:
        spoken: the user's word for each shape, colour, size, relation and count that was said.
    """

    def __init__(self, rng: random.Random, category: str, held_out: bool):
        self.rng, self.category, self.held_out = rng, category, held_out
        self.korean = category == "korean"
        self.spoken: dict[str, str] = {}

    def choose(self, usual: tuple[str, ...], unusual: tuple[str, ...]) -> str:
        return self.rng.choice(unusual if self.held_out and unusual and self.rng.random() < 0.33 else usual)

    def word(self, name: str) -> str:
        """Return a word for a shape, colour, size, relation or count of the world."""
        if self.korean:
            word = self.choose(KOREAN[name], HELD_OUT_KOREAN[name])
        elif self.rng.random() < 0.3:
            word = WORDS[name][0]
        else:
            word = self.choose(WORDS[name], HELD_OUT_WORDS[name])
        self.spoken[name] = word
        return word

    def phrase(self, group: dict) -> str:
        """Return the user's words for one group of a scene; what is None is left out."""
        return (self._korean_phrase if self.korean else self._english_phrase)(group)

    def _english_phrase(self, group: dict) -> str:
        count = group["count"]
        size, color = (group[name] and self.word(group[name]) for name in ("size", "color"))
        noun = world.plural(self.word(group["shape"]) if group["shape"] else "shape", count)
        number = self.word(world.NUMBER_WORDS[count])
        form = self.rng.random()
        look = [size, color]
        after = ""
        if self.category == "negation" and size and form < 0.3:
            after = f" (not {self.word('big' if group['size'] == 'small' else 'small')})"
        elif self.category == "negation" and color and form < 0.5:
            other = self.rng.choice([name for name in world.COLORS if name != group["color"]])
            after = f" ({color}, not {other})"
            look = [size]
        elif color and form < (0.6 if self.category == "order" else 0.15):
            look = [] if size and form < 0.1 else [size]
            after = f" in {color}" if look else f" that {'is' if count == 1 else 'are'} {color} and {size}"
        elif size and form > 0.85:
            look, after = [color], f" ({size})"
        elif form > 0.75:
            look = [color, size]
        look = " ".join(word for word in (*look, noun) if word)
        if number == "a":
            left_out = self.category == "terse" or self.rng.random() < 0.2
            number, look = "", look if left_out else _with_article(look)
        return f"{number} {look}".strip() + after

    def _korean_phrase(self, group: dict) -> str:
        size, color = (group[name] and self.word(group[name]) for name in ("size", "color"))
        while size and size.endswith("고") and not color:  # "small and ...": a colour must follow
            size = self.word(group["size"])
        noun = self.word(group["shape"]) if group["shape"] else "도형"
        swapped = self.rng.random() < 0.2 and not (size or "").endswith("고")
        words = (color, size, noun) if swapped else (size, color, noun)
        return " ".join(word for word in (*words, self.word(world.NUMBER_WORDS[group["count"]])) if word)

    def _listed(self, phrases: list[str]) -> str:
        joint = self.rng.choice(KOREAN_JOINTS if self.korean else JOINTS)
        text = phrases[0]
        for phrase in phrases[1:]:
            vowel = "이" if joint == "랑 " and _particle(text, "이가") == "이" else ""  # "삼각형이랑", but "네모랑"
            text += vowel + joint + phrase
        return text

    def body(self, scene: dict) -> str:
        """Return what the user says of the shapes and their places; one size may be said once for all of them."""
        groups = scene["objects"]
        sizes = {group["size"] for group in groups}
        alike = ""
        if len(groups) > 1 and len(sizes) == 1 and None not in sizes and self.rng.random() < 0.4:
            size = groups[0]["size"]
            groups = [{**group, "size": None} for group in groups]
            ends = KOREAN_ALIKE if self.korean else ALIKE_PAIR if len(groups) == 2 else ALIKE
            alike = self.rng.choice(ends).format(size=KOREAN[size][0] if self.korean else self.word(size))
        return self._placed(scene, [self.phrase(group) for group in groups]) + alike

    def _placed(self, scene: dict, phrases: list[str]) -> str:
        """Return the groups' words with those for their places."""
        relations = [relation for _, relation, _ in scene["relations"]]
        if not relations:
            return self._listed(phrases)
        sides = KOREAN_SIDES if self.korean else SIDES
        inverses = [world.RELATIONS[relation][0] for relation in relations]
        parts = dict(zip(("first", "second", "third"), phrases, strict=False))
        parts |= {"rel": self.word(relations[0]), "inverse": self.word(inverses[0])}
        parts |= {"first_side": sides[relations[0]], "second_side": sides[inverses[0]]}
        if len(relations) == 2:
            parts |= {"rel2": self.word(relations[1]), "inverse2": self.word(inverses[1])}
            bodies = (KOREAN_TRIPLE_BODIES, ()) if self.korean else (TRIPLE_BODIES, HELD_OUT_TRIPLE_BODIES)
        elif self.korean:
            bodies = KOREAN_RELATION_BODIES, HELD_OUT_KOREAN_RELATION_BODIES
        else:
            odd = ODD_RELATION_BODIES if self.category == "order" else ()
            bodies = odd or RELATION_BODIES, HELD_OUT_RELATION_BODIES
        return self.choose(*bodies).format(**parts)

    def prompt(self, scene: dict) -> str:
        """Return the whole prompt: the body in a frame."""
        kind = self.category if self.category in FRAMES else "plain"
        if kind in ("plain", "korean") and self.category not in FRAMES and self.rng.random() < 0.6:
            kind = self.rng.choice(["plain", "order", "terse", "polite", "chatter"])  # typos and capitals: any frame
        if scene["background"] is None:
            kind = "korean_no_background" if self.korean else "no_background"
        frame = self.choose(FRAMES[kind], HELD_OUT_FRAMES[kind])
        rest = [name for name in world.BACKGROUNDS if name != scene["background"]]
        colors = {group["color"] for group in scene["objects"]} | {scene["background"]}
        shapes = {group["shape"] for group in scene["objects"]}
        body = self.body(scene)
        values = {
            "body": body,
            "body_object": body + _particle(body, "을를"),
            "body_subject": body + _particle(body, "이가"),
        }
        if scene["background"]:
            background = self.word(scene["background"])
            values |= {"bg": background, "a_bg": _with_article(background), "not_bg": self.rng.choice(rest)}
            values["bg_noun"] = KOREAN_NOUNS[scene["background"]]
            values["not_bg_noun"] = KOREAN_NOUNS[values["not_bg"]]
        values["not_color"] = self.rng.choice([name for name in world.COLORS if name not in colors])
        others = [name for name in world.SHAPES if name not in shapes] or ["star"]
        values["not_shape"] = world.plural(self.rng.choice(others))
        return frame.format(**values)


def _mistyped(word: str, rng: random.Random) -> str:
    """Return a word with one slip of the fingers: two letters exchanged, one left out, doubled or wrong."""
    place = rng.randrange(1, len(word) - 1)
    slip = rng.randrange(4)
    if slip == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if slip == 1:
        return word[:place] + word[place + 1 :]
    if slip == 2:
        return word[:place] + word[place] + word[place:]
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    row = next((row for row in rows if word[place].lower() in row), rows[0])
    near = row[max(0, row.find(word[place].lower()) - 1)]
    return word[:place] + near + word[place + 1 :]


def with_typos(prompt: str, rng: random.Random) -> str:
    """Return a prompt with slips in one to three of its longer words."""
    words = prompt.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for index in rng.sample(long, min(len(long), rng.randint(1, 3))):
        words[index] = _mistyped(words[index], rng)
    return " ".join(words)


def _as_koreans_type(prompt: str, rng: random.Random) -> str:
    """Return a Korean prompt with, now and then, a slip or a missing space."""
    for word, slip in KOREAN_TYPOS.items():
        if rng.random() < 0.04:
            prompt = prompt.replace(word, slip, 1)
    return "".join(letter for letter in prompt if letter != " " or rng.random() > 0.025)


def leave_out(scene: dict, rng: random.Random) -> dict:
    """Return the scene without one or two of: sizes, background, colours or shapes."""
    missing = rng.sample(["size", "background", "size", "background", "color", "shape"], rng.choice((1, 1, 2)))
    if {"color", "shape"} <= set(missing):
        missing.remove("shape")
    objects = [
        {name: None if name in missing else value for name, value in group.items()} for group in scene["objects"]
    ]
    return scene | {"objects": objects, "background": None if "background" in missing else scene["background"]}


def spoken_prompt(
    scene: dict, category: str, rng: random.Random, held_out: bool = False, speaks: type[Speaker] = Speaker
) -> tuple[str, dict, dict[str, str]]:
    """Return a prompt of a user who means a complete `scene`, what was said of the scene, and the user's words.

    Args:
        category: of `CATEGORIES`.
        held_out: whether to use the `HELD_OUT` collections as well.
        speaks: the user's way of speaking.

    Returns:
        The prompt; the scene with what was left out as None; the user's word for each of the world's words.
    """
    if category == "caption":
        return world.caption(scene), scene, {}
    if category == "left_out" or (category not in ("order", "plain") and rng.random() < 0.15):
        scene = leave_out(scene, rng)
    speaker = speaks(rng, category, held_out)
    prompt = speaker.prompt(scene)
    if category == "korean":
        prompt = _as_koreans_type(prompt, rng)
    elif category == "typo":
        prompt = with_typos(prompt, rng)
    elif category == "capitals":
        prompt = rng.choice((str.upper, str.upper, str.title, str.capitalize))(prompt)
    elif rng.random() < 0.2:
        prompt = prompt[0].upper() + prompt[1:] + rng.choice(("", ".", "!"))
    return prompt, scene, speaker.spoken


def user_prompt(scene: dict, category: str, rng: random.Random, held_out: bool = False) -> tuple[str, dict]:
    """Return the prompt and what was said of the scene, as `spoken_prompt` has them."""
    return spoken_prompt(scene, category, rng, held_out)[:2]


# ---------------------------------------------------------------------------------------------------------- questions


def _look(group: dict) -> str:
    return " ".join(word for word in (group["size"], group["color"], group["shape"] or "object") if word)


def questions_of(scene: dict) -> list[dict]:
    """Return what can be asked of an image of the scene: rows of `question`, `answer`, `needs` and `skill`.

    `needs` has the indices of the questions that must be right first. Only what the user said is asked for.
    """
    rows: list[dict] = []

    def ask(question: str, answer: str, skill: str, needs: tuple = ()) -> int:
        rows.append({"question": question, "answer": answer, "needs": list(needs), "skill": skill})
        return len(rows) - 1

    firsts = []
    for group in scene["objects"]:
        plain = {**group, "size": None}  # is there a red circle? then: is it a big one?
        firsts.append(ask(f"Is there {_with_article(_look(plain))}?", "yes", "object"))
        if group["size"]:
            ask(f"Is there {_with_article(_look(group))}?", "yes", "size", (firsts[-1],))
    looks = [tuple(group[name] for name in ("shape", "color")) for group in scene["objects"]]
    for index, group in enumerate(scene["objects"]):
        shape, color = looks[index]
        if shape and color and [other for other, _ in looks].count(shape) == 1:
            ask(f"What color is the {shape}?", color, "color", (firsts[index],))
        covered = [
            other for other in scene["objects"]
            if all(group[name] in (None, other[name]) or other[name] is None for name in ("shape", "color"))
        ]  # fmt: skip
        if len(covered) == 1:
            plain = {**group, "size": None}
            words = world.plural(_look(plain))
            ask(f"How many {words} are there?", world.NUMBER_WORDS[group["count"]], "count", (firsts[index],))
    for first, relation, second in scene["relations"]:
        names = [_look({**scene["objects"][index], "size": None}) for index in (first, second)]
        if len(set(looks)) == len(looks) and all(all(look) for look in looks):
            question = f"Is the {names[0]} {relation} the {names[1]}?"
            ask(question, "yes", "relation", (firsts[first], firsts[second]))
    if scene["background"]:
        ask("What color is the background?", scene["background"], "background")
    return rows


def any_question(scene: dict, seen: dict, rng: random.Random) -> str:
    """Return a question about an image, to which yes is as frequent as no.

    Args:
        scene: a complete scene like that of the image.
        seen: the image as `world.read_picture` has it.
    """
    kind = rng.choices(("exists", "count", "relation", "value", "background"), (12, 18, 50, 15, 5))[0]
    if kind == "background":
        return "What color is the background?"
    first = rng.choice(seen["objects"])
    others = [shape for shape in seen["objects"] if any(shape[name] != first[name] for name in ("shape", "color"))]
    if kind == "relation" and others:
        second = rng.choice(others)
        relation = rng.choice(list(world.RELATIONS))
        if rng.random() < 0.9:  # along the direction in which they lie, so that the order decides
            wide = abs(first["x"] - second["x"]) > abs(first["y"] - second["y"])
            relation = rng.choice(("left of", "right of") if wide else ("above", "below"))
        names = [_look({**shape, "size": None}) for shape in (first, second)]
        return f"Is the {names[0]} {relation} the {names[1]}?"
    group = rng.choice(scene["objects"])
    if kind == "value":
        asked, said = rng.choice((("shape", ["color"]), ("color", ["shape"]), ("size", ["color", "shape"])))
        return f"What {asked} is the {_look(dict.fromkeys(world.LOOK) | {name: group[name] for name in said})}?"
    said = rng.choice((["color", "shape"], ["color", "shape"], ["size", "color", "shape"], ["shape"], ["color"]))
    if kind == "count":
        said = [name for name in said if name != "size"]
    look = dict.fromkeys(world.LOOK) | {name: group[name] for name in said}
    if rng.random() < (0.25 if kind == "count" else 0.6):
        name = rng.choice(said)
        values = {"shape": world.SHAPES, "color": list(world.COLORS), "size": list(world.SIZES)}[name]
        look[name] = rng.choice([value for value in values if value != group[name]])
    if kind == "count":
        return f"How many {world.plural(_look(look))} are there?"
    return f"Is there {_with_article(_look(look))}?"


# --------------------------------------------------------------------------------------------------------------- rows


def prompt_rows(count: int, unseen: bool, seed: int) -> list[dict]:
    """Return `count` different rows (`user_prompt`, `category`, `difficulty`, `scene`, `questions`).

    The categories take turns; Korean comes twice.

    Args:
        unseen: ask only for scenes with a pair of `world.UNSEEN_PAIRS`, and use held-out words and patterns
            (validation), else neither (training).
    """
    rng = random.Random(seed)
    rows: dict[str, dict] = {}
    for category in itertools.cycle((*CATEGORIES, "korean")):
        if len(rows) == count:
            return list(rows.values())
        prompt = None
        while prompt is None or prompt in rows:
            full = world.random_scene(rng)
            while world.is_unseen(full) != unseen:
                full = world.random_scene(rng)
            prompt, scene = user_prompt(full, category, rng, held_out=unseen)
        difficulty = ("easy", "medium", "hard")[len(full["objects"]) - 1]
        rows[prompt] = {"user_prompt": prompt, "category": category, "difficulty": difficulty, "scene": scene}
        rows[prompt]["questions"] = questions_of(scene)
    raise AssertionError("unreachable")
