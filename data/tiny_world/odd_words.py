"""The templates of `odd_users.py`, in English and Korean."""

import users


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
        *("twin", "two (2)", "a brace of", "1+1", "two identical", "a set of two", "both of my two"),
        "half of 4",
    ),
    3: ("three (3)", "three whole", "2+1", "a set of three", "not two but three", "one, two, three"),
    4: ("four (4)", "all four", "a set of four", "2+2", "one, two, three, four", "twice two"),
}
AFTER = ("x{n}", "({n})", "times {n}", ", {n} of them,", "×{n}", "- {n} pcs", ", quantity {n},", ": {n}", "[{n}]")
LOOKS_AFTER = (
    *("{noun}, the {looks} kind", "{noun} of the {looks} sort", "{noun} - {looks}", "{noun} [{looks}]"),
    *("{noun} ({looks})", "{noun}, {looks} of course", "{noun} which must be {looks}", "{noun} (make it {looks})"),
    *("{noun}, y'know, {looks}", "{noun} that i want {looks}", "{noun}: {looks}", "{noun} whose look is {looks}"),
    "{noun}, {looks}, yes {looks}",
)
KOREAN_COUNTS = {
    1: ("딱 한 개", "달랑 하나", "한개", "한 개만", "하나만", "x1", "(1개)", "단 하나"),
    2: ("두개", "한 쌍", "x2", "(2개)", "두 개만", "둘씩이나", "2개요", "두 놈"),
    3: ("세개", "x3", "(3개)", "세 개만", "총 세 개", "3개요", "세 놈"),
    4: ("네개", "x4", "(4개)", "네 개만", "총 네 개", "4개요", "둘둘 합쳐 네 개"),
}
KOREAN_NUMBERS = {
    1: ("하나의", "한 개의"),
    2: ("두 개의", "2개의"),
    3: ("세 개의", "3개의"),
    4: ("네 개의", "4개의"),
}
KOREAN_LOOKS_AFTER = (
    *("{noun} {num} ({looks})", "{noun} {num}, {looks}", "{noun} {looks} {num}", "{noun}인데 {looks} {num}"),
    *("{noun}[{looks}] {num}", "{noun} - {looks} {num}", "{noun} {num} {looks}", "{noun} {num}: {looks}"),
)
COLOR_NOUNS = {
    **{"red": "빨간색", "green": "초록색", "blue": "파란색", "yellow": "노란색", "purple": "보라색"},
    "orange": "주황색",
    **users.KOREAN_NOUNS,
}
SIZE_NOUNS = {
    "small": ("작은 거", "작은 걸로", "사이즈 작은 거", "스몰"),
    "big": ("큰 거", "큰 걸로", "사이즈 큰 거", "빅"),
}
SYMBOLS = {"circle": "●", "square": "■", "triangle": "▲", "cross": "✚"}
EMOJI = {
    "circle": {
        "red": "🔴",
        "orange": "🟠",
        "yellow": "🟡",
        "green": "🟢",
        "blue": "🔵",
        "purple": "🟣",
        "black": "⚫",
    },
    "square": {
        "red": "🟥",
        "orange": "🟧",
        "yellow": "🟨",
        "green": "🟩",
        "blue": "🟦",
        "purple": "🟪",
        "black": "⬛",
    },
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
    *("{a} it must being {rel} {b}", "{inv} {a} is where {b} goes", "* {a}\n* {b}, which is {inv} the other one"),
    "{a}\n{its_b}: {b}",
)
TRIPLED = (
    *("{a} {rel} {b} and at the same time {rel2} {c}", "{b} {inv} {a}, and {c} {inv2} {ra}"),
    *("{a}: {its_b} {b}, {its_c} {c}", "start: {a}. {its_b} comes {b}, then back to {ra}, {its_c} {c}"),
    *("1) {a} 2) {b} {inv} 1 3) {c} {inv2} 1", "in the {corner} corner {a}; {b} {inv} it; {c} {inv2} {ra}"),
    *("{corner}: {a}. {inv} {ra}: {b}. {inv2} {ra}: {c}", "{a} has two neighbours: {b} {its_b}, {c} {its_c}"),
    *("{a} sees {b} {its_b} and {c} {its_c}", "{a}, {rel} {b}, {rel2} {c}"),
    "first {a}. next, {inv} {ra}, {b}. last, {inv2} {ra}, {c}",
    *("{b} and {c}: the first is {inv} and the second {inv2} {a}", "- {a}\n- {inv} {ra}: {b}\n- {inv2} {ra}: {c}"),
    "#1 {a}, #2 {b}, #3 {c}; #1 is {rel} #2 and {rel2} #3",
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
    "{a} 있음. 그 {inv} {b} 있음. {ra} {inv2} {c} 있음",
)
KOREAN_CHAINS = (
    *(("{}", "그담에 {}", "마지막 {}"), ("1) {}", "2) {}", "3) {}"), ("{}", "거기에 {}", "또 {}"), ("{}", "{}", "{}")),
    *(("먼저 {}", "다음 {}", "끝으로 {}"), ("- {}", "- {}", "- {}"), ("{}", "글고 {}", "글고 {}")),
    *(("{}도", "{}도", "{}도"), ("하나는 이거: {}", "다른 건 {}", "나머지는 {}"), ("{}", "및 {}", "및 {}")),
    ("{}", "게다가 {}", "게다가 {}"),
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
