"""Users whose prompts have odd structures, in English and Korean: for pretraining, as `free_users.py`.

They correct themselves, deny, count indirectly, write lists, tables and code, and say looks for several shapes at
once. No prompt file is made of these.
"""

import free_users
import users
import world


# {wrong} was never meant, {right} is what counts: of a look, a noun or a number.
CORRECTIONS = (
    *("{wrong} no wait {right}", "{wrong}, sorry, {right}", "{wrong}... i mean {right}", "not {wrong} but {right}"),
    *("{right} instead of {wrong}", "{right}, not {wrong},", "{right} rather than {wrong}", "{wrong}, nope, {right}"),
    *("{wrong}, scratch that, {right}", "anything but {wrong}, so {right}", "{right} (definitely not {wrong})"),
    *("{wrong}-- er, {right}", "~~{wrong}~~ {right}", "{wrong} hmm actually {right}"),
    *("{right} and by no means {wrong}", "{wrong}, or rather {right},", "{wrong} (typo, {right})"),
    *("{wrong}? no, {right}", "{right} (i said {right}, ok)", "never {wrong}, always {right},"),
    *("{right}, in place of {wrong},", "{wrong}, correction: {right}"),
)
KOREAN_CORRECTIONS = (
    *("{wrong} 말고 {right}", "{wrong} 아니고 {right}", "{wrong} 아니 {right}", "{wrong}... 아 아니다 {right}"),
    *("{wrong}, 아니 그거 말고 {right}", "{wrong} 대신 {right}", "{wrong} 대신에 {right}", "{wrong}(X) {right}"),
    *("{wrong} 절대 아니고 {right}", "{wrong}이 아니라 {right}", "{wrong} 앗 실수 {right}", "{wrong} ㄴㄴ {right}"),
    *("{wrong} 아니지 {right}", "{wrong} 빼고 {right}", "{wrong} 아니에요 {right}", "{wrong}->{right}"),
)
BEFORE = {
    1: (
        *("a lone", "just the one", "a solitary", "exactly 1", "one (1)", "only one", "no more than one", "1x"),
        "yon one",
    ),
    2: (
        *("twin", "two (2)", "a brace of", "one plus one", "two identical", "a set of two", "both of my two"),
        "half of 4",
    ),
    3: ("three (3)", "three whole", "two plus one", "a set of three", "not two but three", "one, two, three"),
    4: ("four (4)", "two plus two", "a set of four", "2+2", "one, two, three, four", "twice two"),
}
AFTER = ("x{n}", "({n})", "times {n}", ", {n} of them,", "×{n}", "- {n} pcs", ", quantity {n},", ": {n}", "[{n}]")
LOOKS_AFTER = (
    *("{noun}, the {looks} kind", "{noun} of the {looks} sort", "{noun} - {looks}", "{noun} [{looks}]"),
    *("{noun} ({looks})", "{noun}, {looks} of course", "{noun} which must be {looks}", "{noun} (make it {looks})"),
    *("{noun}, y'know, {looks}", "{noun} painted {looks}", "{noun}: {looks}", "{noun} whose look is {looks}"),
    "{noun}, {looks}, yes {looks}",
)
KOREAN_COUNTS = {
    1: ("딱 한 개", "달랑 하나", "한개", "한 개만", "하나만", "x1", "(1개)", "단 하나"),
    2: ("두개", "한 쌍", "x2", "(2개)", "두 개만", "둘씩이나", "2개요", "두 놈"),
    3: ("세개", "x3", "(3개)", "세 개만", "총 세 개", "3개요", "세 놈"),
    4: ("네개", "x4", "(4개)", "네 개만", "총 네 개", "4개요", "두 개 더하기 두 개"),
}
KOREAN_NUMBERS = {1: ("하나의", "한 개의"), 2: ("두 개의", "2개의"), 3: ("세 개의", "3개의"), 4: ("네 개의", "4개의")}
KOREAN_LOOKS_AFTER = (
    *("{noun} {num} ({looks})", "{noun} {num}, {looks}", "{noun} {looks} {num}", "{noun}인데 {looks} {num}"),
    *("{noun}[{looks}] {num}", "{noun} - {looks} {num}", "{noun} {num} {looks}", "{noun} {num}: {looks}"),
)
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black")
COLOR_NOUNS = (
    dict(zip(COLORS, ("빨간색", "초록색", "파란색", "노란색", "보라색", "주황색"), strict=False)) | users.KOREAN_NOUNS
)
SIZE_NOUNS = {
    "small": ("작은 거", "작은 걸로", "사이즈 작은 거", "스몰"),
    "big": ("큰 거", "큰 걸로", "사이즈 큰 거", "빅"),
}
SYMBOLS = {"circle": "●", "square": "■", "triangle": "▲", "cross": "✚"}
EMOJI = {
    "circle": dict(zip(COLORS, "🔴🟢🔵🟡🟣🟠⚫", strict=True)),
    "square": dict(zip(COLORS, "🟥🟩🟦🟨🟪🟧⬛", strict=True)),
}
SHARED = {
    "size": (
        *("every shape {look}", "all the shapes are {look}", "nothing that isn't {look}", "the same size all: {look}"),
        *("whatever you draw, draw it {look}", "size for all: {look}", "{look}, the whole lot", "each one {look}"),
        "sizes? {look} throughout",
    ),
    "color": (
        *("every shape {look}", "all the shapes are {look}", "one colour for all shapes: {look}"),
        *("all shapes in {look}", "the shapes share a colour, {look}", "paint each shape {look}"),
        "{look} shapes, all of them",
    ),
}
KOREAN_SHARED = {
    "size": ("크기는 다 {look}", "사이즈는 전부 {look}", "도형은 모두 {look}", "크기 똑같이 {look}", "싹 다 {look}"),
    "color": (
        *("색은 다 {look}", "도형 색깔은 전부 {look}", "도형은 모두 {look}", "색 똑같이 {look}", "도형들 다 {look}"),
    ),
}
PAIRED = (
    *("{a} and {b}, the former {rel} the latter", "{a} and {b}; the latter {inv} the former", "{b}, {its_a} {a}"),
    *("{b} and {a}, the first {inv} the second", "{a} & {b} (1st one {rel} 2nd one)"),
    *("looking from {b}, {a} is {its_a}", "seen from {a}: {b} {its_b}", "{a_at} there shall be {a}, {b_at} {b}"),
    *("take {b}; {its_a} put {a}", "{b} has {a} as its neighbour {its_a}", "first draw {b}, then {its_a} {a}"),
    *("step 1: {a}. step 2: {its_b} {b}", "{b_at}: {b} / {a_at}: {a}", "{a} lives {rel} {b}"),
    *("who is {rel} {b}? {a}!", "what is {b_at}? {b}. and {a_at}? {a}", "{a_at}={a}; {b_at}={b}"),
    *("{a}, {b}: the one i said first is {rel} the other", "{b} ({b_at}) + {a} ({a_at})"),
    *("not {inv} but {rel} {b}: {a}", "if you find {b}, look {its_a}: {a}", "{a} not {inv} {b}, but {rel} it"),
    *("{a} it must being {rel} {b}", "{inv} {a} is where {b} goes", "* {a}\n* {b}, {its_b} of the other"),
    "{a}\n{its_b}: {b}",
)
TRIPLED = (
    *("{a} {rel} {b} and at the same time {rel2} {c}", "{b} {inv} {a}, and {c} {inv2} {ra}"),
    *("{a}: {its_b} {b}, {its_c} {c}", "start: {a}. {its_b} comes {b}, then back to {ra}, {its_c} {c}"),
    *("1) {a} 2) {b} {inv} 1 3) {c} {inv2} 1", "in the {corner} corner {a}; {b} {inv} it; {c} {inv2} {ra}"),
    *("{corner}: {a}. {its_b} of that: {b}. {its_c} of that: {c}", "{a} has two neighbours: {b} {its_b}, {c} {its_c}"),
    *("{a} sees {b} {its_b} and {c} {its_c}", "{a}, {rel} {b}, {rel2} {c}"),
    "first {a}. next, {inv} {ra}, {b}. last, {inv2} {ra}, {c}",
    "{b} and {c}: the first is {inv} and the second {inv2} {a}",
    *("- {a}\n- {its_b} {b}\n- {its_c} (of the first) {c}", "#1 {a}, #2 {b}, #3 {c}; #1 is {rel} #2 and {rel2} #3"),
)
LISTED = (
    *("1. {}", "- {}", "• {}", "* {}", "[ ] {}", "a) {}", "{};", "{} +", "also {},", "{} /", "then {},"),
    "there's {},",
)
CHAINS = (
    *(("first {}", "then {}", "and lastly {}"), ("1) {}", "2) {}", "3) {}"), ("{}", "plus {}", "plus {}")),
    *(("{}", "as well as {}", "not forgetting {}"), ("i see {}", "i see {}", "and i see {}")),
    *(("{}", "along with {}", "& {}"), ("one kind: {}", "another kind: {}", "last kind: {}")),
    *(("{}", "with {}", "together with {}"), ("{}", "n {}", "n {}"), ("step 1, {}", "step 2, {}", "step 3, {}")),
    ("mommy there is {}", "and there is {}", "and also {}"),
)
KOREAN_PAIRED = (
    *("{b} {rel} {a} 두고", "{a}{a_topic} {b} {rel}", "{a}, {b} 있는데 앞에 말한 게 뒤에 말한 거 {rel}"),
    *("{b} 기준 {rel} {a}", "{a_at}: {a}, {b_at}: {b}", "{b_at}에 {b} 있구 {a_at}에 {a}"),
    *("{b}{b_topic} {b_at}, {a}{a_topic} {a_at}", "{a_at}={a} / {b_at}={b}", "먼저 {b} 그리고 그 {rel} {a}"),
    *("{a} 먼저 그리고 나서 그 {inv} {b}", "{b}의 {rel} 위치한 {a}", "{a} 보면 그 {inv} {b} 있음"),
    *("{a_at}에 뭐? {a}. {b_at}에는? {b}", "1. {a}\n2. {b} (1번 {inv})", "{a}({a_at}) + {b}({b_at})"),
    *("{b}{b_subject} 있는데 걔 {rel} {a}", "{b} {inv} 말고 {rel} {a}"),
    *("옛날에 {b}{b_subject} 살았는데 그 {rel} {a}{a_subject} 살았대", "{a}{a_with} {b}, 전자가 후자 {rel}"),
    *("{a_at} 쪽에다가 {a} 놓고 {b_at} 쪽에다가 {b} 놓고", "{a}{a_with} {b}, 후자가 전자 {inv}"),
    "{a}{a_object} {b} {rel}",
)
KOREAN_TRIPLED = (
    *("{a}{a_subject} 있고 그 {inv} {b}, 또 {ra} {inv2} {c}", "{a} 기준으로 {inv} {b}, {inv2} {c}"),
    *("1번 {a}, 1번 {inv} 2번 {b}, 1번 {inv2} 3번 {c}", "{corner}에 {a}, 그거 {inv} {b}, {ra} {inv2} {c}"),
    *("{a}{a_topic} {b} {rel}, 그리고 {c} {rel2} 있어야 함", "{a}!! {inv}는 {b} {inv2}는 {c}"),
    *("{a}의 {inv}는 {b}, {a_short}의 {inv2}는 {c}", "- {a}\n- {ra} {inv} {b}\n- {ra} {inv2} {c}"),
    "{b}{b_with} {c} 있는데 {b} {rel}, {c} {rel2} {a}",
)
KOREAN_CHAINS = (
    *(("{}", "그담에 {}", "마지막 {}"), ("1) {}", "2) {}", "3) {}"), ("{}", "거기에 {}", "또 {}"), ("{}", "{}", "{}")),
    *(("먼저 {}", "다음 {}", "끝으로 {}"), ("- {}", "- {}", "- {}"), ("{}", "글고 {}", "글고 {}")),
    *(("{}도", "{}도", "{}도"), ("하나는 이거: {}", "다른 건 {}", "나머지는 {}"), ("{}", "및 {}", "및 {}")),
    ("{}", "플러스 {}", "플러스 {}"),
)
CORNERS = {"left": "왼쪽", "right": "오른쪽", "top": "위", "bottom": "아래"}
OPENINGS = (
    *("", "", "", "", "pray draw me", "behold:", "once upon a time there lived", "yo", "hear ye! i command"),
    *("plz make", "task:", "act as a painter and paint", "you are an artist. your job:", "my mum says you can draw."),
    *("in my dream i saw", "tl;dr", "so the bus was late, my coffee is cold, and now i want", "long story short:"),
    *("riddle: which picture has this?", "u know what?", "teacher, i wanna"),
    *("good morrow, fair machine; render unto me", "i am wanting", "it has to have", "quick q, can u do", "prompt ="),
    *("my cat sat on the keyboard but anyway:", "dear sir or madam, kindly furnish", "kiddo here!!"),
    *("as discussed with {person},", "spec:", "// todo", "/draw", "img of", "let there be", "ye olde painting of"),
    *("ahoy! hoist me", "ok google,", "wanted:", "quiz time!", "fr tho", "for {thing}, whose deadline was yesterday,"),
    *("we moved house last week, so {person} needs", "make picture where is", "bruh just"),
)
CLOSINGS = (
    *("", "", "", "", "tysm", "kthxbye", "that would make my day", "yours faithfully, {person}", "the end"),
    *("what am i? a picture!", "lol", "no {not_shape} at all", "don't you dare add {not_shape}", "i count on thee"),
    *("and then i'll go to lunch", "over and out", "asap", "can it have {not_shape}? no, it can't"),
    *("it rained all day here btw", "{person} will be so happy", "return only the image", "fin", "you got all that?"),
    *("thank you in advance for your help", "leave out {not_shape}, i beg you", "ty <3", "// end"),
    "that is whole picture",
)
GROUNDS = (
    *("paper: {bg}", "{bg} sky", "the wall behind is {bg}", "paint the wall {bg} first"),
    *("as for the background, {bg}", "bg -> {bg}", "background: not {not_bg}, {bg}"),
    *("backdrop {not_bg}... no wait, {bg}", "background {bg} instead of {not_bg}", "bgcolor='{bg}'"),
    *("all this upon {a_bg} ground", "use {bg} paper", "whatever isn't a shape is {bg}", "{bg} is what's behind"),
    *("a sky of {bg}", "the back must to be {bg}", "empty space = {bg}", "i like my backgrounds {bg}"),
    *("background color? {bg}", "{a_bg} sheet underneath", "background anything but {not_bg}: {bg}"),
    *("flood the canvas with {bg}", "a wall that's {bg}", "{bg} everywhere else", "on {a_bg} {surface}"),
)
KOREAN_OPENINGS = (
    *("", "", "", "", "야", "있잖아", "아니 근데", "엄마가 그러는데", "옛날 옛적에", "퀴즈!", "주문할게요:", "ㅎㅇ"),
    *("음...", "선생님~", "여보게,", "오늘 비도 오고 심심해서 그런데", "버스 놓치고 커피도 쏟았는데 암튼"),
    *("넌 이제 화가야.", "과제 마감이 내일이라", "의뢰 내용:", "ㅇㅇ 그니까", "혹시 실례가 안 된다면"),
    *("꿈에서 봤는데", "울 애기가 좋아하는", "할매가 카는데", "귀하께 요청드립니다.", "심플 디자인으로", "급함"),
    *("자, 들어봐.", "저 초딩인데요", "회의 때 나온 건데", "이런 그림 있나요?", "간만에 부탁 하나 하자면", "요청:"),
    *("아따", "그림 소재:"),
)
KOREAN_CLOSINGS = (
    *("", "", "", "그려라", "그려다오", "그려 주십시오", "그려주시겠습니까?", "그려주삼", "그려주세용~", "그려줘잉"),
    *("그려주이소", "그려도", "ㄱㄱ", "고고", "부탁드림", "요망", "그려봐봐", "ㅋㅋ", "ㅋㅋㅋ 부탁", "플리즈"),
    *("그려주라 ㅠㅠ", "해주시면 감사하겠습니다", "있었으면 해", "바람", "그려주게나", "이렇게 해주면 밥 살게"),
    *("이게 다임", "끝!", "그려줄 수 있나 ㅎㅎ", "좀 해줘유", "알겠지?", "그려주시오", "이렇게요", "이상입니다."),
    *("원해용", "넣어서 만들어 주실래요?", "보이게 해주셈", "나오게 해줘", "그려주면 안 돼?", "감사합니당"),
    *("딴 건 넣지 마", "그려주렴", "이 정답"),
)
KOREAN_GROUNDS = (
    *("배경색={noun}", "종이는 {noun}", "하늘은 {noun}", "벽은 {noun}", "뒷배경 {noun}"),
    *("배경은 {not_noun} 아니고 {noun}", "바탕색은 {noun}임", "배경 {not_noun}... 아니다 {noun}"),
    *("뒤에는 온통 {noun}", "{noun} 종이 깔고", "배경은요 {noun}이에요", "배경: {noun}", "바탕 {adverb} 칠하고"),
    *("빈 데는 다 {noun}", "배경은 {noun} ㅇㅇ", "도화지는 {noun}인데", "{not_noun} 배경 싫고 {noun} 배경"),
    *("백그라운드 {noun}", "{noun} 벽 앞에", "배경을 {noun}으로다가", "배경은 {noun}이 좋겠구나"),
    *("배경은 {noun}입니다", "배경 {not_noun} ㄴㄴ {noun} ㅇㅇ", "배경색은 {noun}으로 부탁"),
)
WRAPS = ("{{{}}}", "[{}]", "<{}/>", "({})", "draw({})", "- {}", "| {} |", "{}", "add {}", "* {}", "shape {{ {} }}")
KEYS = {
    "shape": ("shape", "type", "what"),
    "color": ("color", "colour", "fill"),
    "size": ("size", "scale"),
    "count": ("n", "count", "qty"),
}
KOREAN_KEYS = {
    "shape": ("모양", "도형"),
    "color": ("색", "색깔", "컬러"),
    "size": ("크기", "사이즈"),
    "count": ("개수", "갯수", "수량"),
}


class OddSpeaker(free_users.FreeSpeaker):
    """A user whose prompts have odd structures; arguments and attributes as for `Speaker`."""

    def _corrected(self, right: str, name: str, choices) -> str:
        """Return a word after a slip of the tongue: the `name` of the world that it stands for is not the slip."""
        slip = self.rng.choice([other for other in choices if other != name])
        if not self.korean:
            return self.rng.choice(CORRECTIONS).format(wrong=slip, right=right)
        sized = {"small": "작은 거", "big": "큰 거"}
        wrong = sized.get(slip) or COLOR_NOUNS.get(slip) or users.KOREAN[slip][0]
        template = self.rng.choice(KOREAN_CORRECTIONS)
        return template.replace("}이 아니라", "}" + users._particle(wrong, "이가") + " 아니라").format(
            wrong=wrong, right=right
        )

    def _noun(self, group: dict) -> str:
        """Return the word for a group's shape, sometimes a symbol, sometimes after a slip."""
        shape = group["shape"]
        if not shape:
            return "도형" if self.korean else world.plural("shape", group["count"])
        if self.rng.random() < 0.06:
            self.spoken[shape] = SYMBOLS[shape]
            return SYMBOLS[shape]
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
        icon = EMOJI.get(group["shape"], {}).get(group["color"])
        if icon and self.rng.random() < 0.12:
            size = self.word(group["size"]) if group["size"] else ""
            return f"{size} {icon if count == 1 else choose((icon * count, f'{icon} x{count}'))}".strip()
        noun, looks = self._noun(group), self._looks(group)
        number = self.word(world.NUMBER_WORDS[count])
        form = self.rng.random()
        if form < 0.15:
            number = choose(BEFORE[count])
        elif form < 0.2:
            number = self._corrected(world.NUMBER_WORDS[count], world.NUMBER_WORDS[count], world.NUMBER_WORDS[1:5])
        elif form < 0.35:
            text = " ".join([*looks, noun])
            return f"{text} {choose(AFTER).format(n=choose((count, world.NUMBER_WORDS[count])))}".replace(" ,", ",")
        if looks and self.rng.random() < 0.35:
            kept = looks[:-1] if self.rng.random() < 0.4 else []
            noun = choose(LOOKS_AFTER).format(noun=noun, looks=choose((" and ", ", ", " + ")).join(looks[len(kept) :]))
            looks = kept
        text = " ".join([*looks, noun])
        return users._with_article(text) if number == "a" else f"{number} {text}"

    def _korean_phrase(self, group: dict) -> str:
        if self.rng.random() < 0.25:
            return super()._korean_phrase(group)
        choose, count = self.rng.choice, group["count"]
        icon = EMOJI.get(group["shape"], {}).get(group["color"])
        if icon and self.rng.random() < 0.1:
            size = self.word(group["size"]).replace("고", "은 거").replace("크은", "큰") if group["size"] else ""
            return f"{size.replace('작은 거', '작은')} {icon * count}".strip()
        noun, num = self._noun(group), self.word(world.NUMBER_WORDS[count])
        form = self.rng.random()
        if form < 0.25:
            num = choose(KOREAN_COUNTS[count])
        elif form < 0.32:
            right = world.NUMBER_WORDS[count]
            num = self._corrected(users.KOREAN[right][1 if count == 1 else 0], right, world.NUMBER_WORDS[1:5])
        if self.rng.random() < 0.35 and (group["size"] or group["color"]):
            size, color = group["size"], group["color"]
            looks = [choose((*SIZE_NOUNS[size], *free_users.KOREAN_SIZED[size]))] if size else []
            looks += [choose((COLOR_NOUNS[color], COLOR_NOUNS[color] + "으로"))] if color else []
            looks = choose((", ", " ", "/")).join(self.rng.sample(looks, len(looks)))
            text = choose(KOREAN_LOOKS_AFTER).format(noun=noun, num=num, looks=looks)
            last = noun[-1:]
            text = text if users._particle(last, "이가") == "이" else text.replace(f"{noun}인데", f"{noun}ㄴ데", 1)
            return " ".join(text.replace(" ,", ",").replace(" :", ":").split())
        looks = self._looks(group)
        if self.rng.random() < 0.12:
            return " ".join([choose(KOREAN_NUMBERS[count]), *looks, noun])
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
            korean = choose(SIZE_NOUNS.get(value) or (COLOR_NOUNS.get(value),))
            return korean if self.korean else self.word(value)

        if len(set(values)) == 1:
            return bare, [choose((KOREAN_SHARED if self.korean else SHARED)[name]).format(look=look(values[0]))]
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
                mark = choose(LISTED[1:5] + LISTED[6:])
                return choose(("\n", " ")).join(mark.replace("{}", phrase) for phrase in phrases).rstrip("+/;, ")
            chain = choose(KOREAN_CHAINS if korean else CHAINS) if len(phrases) > 1 else ("{}",)
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
        parts["corner"] = " ".join(CORNERS[side] for side in sides) if korean else " ".join(sides)
        name = self._name(scene["objects"], 0)
        parts |= {"ra": name or ("처음 거" if korean else "the first one"), "a_short": name or "처음 거"}
        for x in "ab":
            for key, pair in {"topic": "은는", "subject": "이가", "object": "을를", "with": "과와"}.items():
                parts[f"{x}_{key}"] = users._particle(parts[x], pair)
        if len(relations) == 2:
            return choose(KOREAN_TRIPLED if korean else TRIPLED).format(**parts)
        return choose(KOREAN_PAIRED if korean else PAIRED).format(**parts)

    def _structured(self, scene: dict) -> str:
        """Return the shapes and places as records: code, tables or key and value."""
        choose, korean = self.rng.choice, self.korean
        keys = {name: choose(words) for name, words in (KOREAN_KEYS if korean else KEYS).items()}
        names, wrap = choose(("ABC", "123", ("first", "second", "third"), "xyz")), choose(WRAPS)
        equals, comma, bare = (
            choose(("=", ": ", ":", " = ", " is ")),
            choose((", ", "; ", " | ", " ")),
            self.rng.random() < 0.3,
        )
        order, records = self.rng.sample(list(keys), 4), []
        for name, group in zip(names, scene["objects"], strict=False):
            values = {key: group[key] and self.word(group[key]) for key in world.LOOK} | {"count": str(group["count"])}
            if korean:
                values |= {key: nouns[group[key]] for key, nouns in (("color", COLOR_NOUNS),) if group[key]}
                values |= {"size": group["size"] and {"small": "작음", "big": "큼"}[group["size"]]}
            fields = [(keys[key], values[key]) for key in order if values[key]]
            fields = [value if bare and key != keys["count"] else f"{key}{equals}{value}" for key, value in fields]
            record = wrap.format(comma.join(fields))
            records.append(f"{name}{choose((':', ' =', '.'))} {record}" if scene["relations"] else record)
        for first, relation, second in scene["relations"]:
            word = self.word(relation)
            records.append(
                f"{names[first]}는 {names[second]} {word}" if korean else f"{names[first]} {word} {names[second]}"
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
        parts = self._parts(scene)
        others = [shape for shape in world.SHAPES if shape not in self.shapes and None not in self.shapes]
        not_bg = choose([name for name in world.BACKGROUNDS if name != scene["background"]])
        values = {"thing": choose(free_users.THINGS), "person": choose(free_users.PERSONS)}
        values |= {"not_shape": world.plural(choose(others or ["star"])), "surface": choose(free_users.SURFACES)}
        values |= {"not_bg": not_bg, "not_noun": users.KOREAN_NOUNS[not_bg]}
        if background := scene["background"]:
            values["noun"] = users.KOREAN_NOUNS[background]
            values |= {"bg": self.word(background), "adverb": choose(free_users.KOREAN_DYED[background])}
            values["a_bg"] = users._with_article(values["bg"])
            grounds = KOREAN_GROUNDS if korean else GROUNDS
            grounds = grounds if ours else free_users.KOREAN_BACKGROUNDS if korean else free_users.BACKGROUNDS
            parts.insert(choose((0, len(parts), self.rng.randint(0, len(parts)))), choose(grounds).format(**values))
        text = choose((", ", ". ", "; ", "\n", " - ", "... ", " ~ " if korean else " and ", "! ")).join(parts)
        openings = (free_users.KOREAN_OPENINGS, KOREAN_OPENINGS) if korean else (free_users.OPENINGS[:-1], OPENINGS)
        closings = (free_users.KOREAN_CLOSINGS, KOREAN_CLOSINGS) if korean else (free_users.CLOSINGS, CLOSINGS)
        opening, closing = choose(openings[ours]).format(**values), choose(closings[ours]).format(**values)
        values["not_bg"] = values["not_bg"]
        glue = choose((", ", " ", ". ", "\n")) if closing[:1].isalpha() else choose(("", " "))
        return f"{opening} {text}{glue}{closing}".strip().replace(",,", ",")

    def prompt(self, scene: dict) -> str:
        """Return the whole prompt, of 45 words at most."""
        text = self._draft(scene)
        for _ in range(20):
            if len(text.split()) <= 45:
                break
            text = self._draft(scene)
        return text
