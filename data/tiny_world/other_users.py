"""Users of many ages and trades, in English and Korean: for pretraining, so that any sentence structure is read.

They refer back, tell looks later, share and except them, take things back and leave things open.
"""

import re

import free_users
import odd_users
import odd_words
import users
import world


# Sections of templates, each after # and its name. {a}, {b}, {c} are the groups, {ra} ... refer to them; {rel_b} says
# where b is as seen from a, {rel_a} where a is as seen from b, {rel_d} where a is as seen from c. A template after =
# is a noun phrase; a/n becomes a or an.
ENGLISH = """
#left of: its=to its left/on its left|at=on the left/on the left side|which=to the left of which|face=left side
way=left|side=left|order=from left to right|line=row #right of: at=on the right/on the right side|face=right side
its=to its right/on its right|way=right|side=right|which=to the right of which|order=from right to left|line=row
#above: its=above it/over it|at=at the top/up top/in the upper half|way=up|which=above which/over which|face=upper side
side=top|order=from top to bottom|line=column #below: at=at the bottom/down below/in the lower half|face=underside
its=below it/under it|way=down|side=bottom|which=below which/under which|order=from bottom to top|line=column
#corner_a: {side_a} {side_d} #corner_b: {side_b} {side_d} #corner_c: {side_a} {side_c}
#paired: {a} has {b} {its_b}|{rel_a} {b} there is {a}|put {a} {rel_b} {b}. hmm, no, swap them: {ra} goes {rel_a} {rb}
{rel_a} {b} {sits} {a}|{b}, {which_a} you find {a}|{order_a}: {a}, {b}|the {side_a} one is {a}, the {side_b} one is {b}
reading {order_a}, {a} comes before {b}|{side_a}: {a}↵{side_b}: {b}|two of them in one {line_a}, {order_a} {a} and {b}
step 1: put {a}. step 2: go {way_b} from there and put {b}|it's {a} that is {rel_a} {b}, not the other way round
going {way_b} from {a} you reach {b}|look {way_b} from {a} and you see {b}|what do you see {at_a}? {a}. and {at_b}? {b}
between the {face_b} of {a} and the {side_b} edge there is {b}|{a} takes the {side_a} half, {b} the {side_b} half
where does {b} go? {rel_b} {a}|{a} isn't {rel_b} {b}, it's {rel_a} it|{a} has a friend, {b}, who lives {rel_b} it
{a}; {b} is not {rel_a} it but {rel_b} it|first i wanted {a} {rel_b} {b}, but now {ra} should be {rel_a} {rb}
={b}, whose neighbour {its_a} is {a}|{a}, and further {way_b}, {b}|{at_b} we have {b}, while {a} is {at_a}
as for {b}, it has {a} {its_a}|{a} {rel_b} {b}... no, the other way round: {ra} {rel_a} {rb}
{a} and {b}, {ra} being {rel_a} {rb} #paired on: what you see {on} is {a}, {which_b} {sits} {b}
{a}, {on}, has {b} {its_b}|{at_a}, {on}, {a}; {at_b}, {b}|{rel_a} {b}, {on}, there is {a}
#tripled: {a} has {b} {its_b} and {c} {its_c}|put {a} down. {rel_b} {ra} put {b}. now back to {ra}: {c} goes {its_c}
{rel_b} {a} there is {b}, {rel_c} {ra} there is {c}|{a} lives {rel_a} {b}, and whoever looks {way_c} from {ra} sees {c}
{b} {rel_b} {a}, {c} {rel_c} {ra}|a 2 by 2 grid: {corner_a} {a}, {corner_b} {b}, {corner_c} {c}, the fourth cell empty
{a}. {b} goes {rel_b} {ra}. {c} goes {rel_c} {ra}|{a}, {b}, {c}. the first is {rel_a} the second and {rel_d} the third
{corner_a}: {a}↵{corner_b}: {b}↵{corner_c}: {c}|{corner_a} corner: {a}, {corner_b} corner: {b}, {corner_c} corner: {c}
{a}, {which_b} is {b} and {which_c} {c}|{a} with {b} {its_b}; then {c} {rel_d} {ra}, no wait, {rel_c} {ra}
from {a}, go {way_b} for {b} and {way_c} for {c}|{c}, {b}, {a}. the last of these is {rel_a} {rb} and {rel_d} {rc}
{order_a}: {a}, {b}. and {order_d}: {ra}, {c}|everything is seen from {a}: {b} is {its_b}, {c} {its_c}
{a} is {rel_a} {b}. {ra} is also {rel_d} {c}|what is {rel_b} {a}? {b}. and what is {rel_c} {ra}? {c}
{rel_a} {b}, and {rel_d} {c}, {sits} {a}
#paired refs: {ra} is {rel_a} {rb}|{rb} has {ra} {its_a}|don't put {ra} {rel_b} {rb}, it goes {rel_a} it
{ra} belongs {at_a}, {rb} {at_b}|{order_a}: {ra}, then {rb}|place {rb} so that {ra} is {rel_a} it
of the two, {ra} is {at_a} #tripled refs: from {ra}, go {way_b} to get to {rb} and {way_c} to get to {rc}
{ra} is {rel_a} {rb} and {rel_d} {rc}|{rb} goes {rel_b} {ra}, {rc} goes {rel_c} {ra}
{ra} has {rb} {its_b} and {rc} {its_c}
#chains: there is {}. > there is also {}. > and there is {}, too|what's first? {}. > what else? {}. > and what else? {}
besides {} > and {} > there should be {}|i drew {}, > my sister {} > and my brother {}, copy all of that
not only {} > , not only {} > but also {}|i'd start with {}, > go on with {} > and end with {}|☐ {}↵ > ☐ {}↵ > ☐ {}
={} > joined by {} > and, to finish, {}|one kind: {}; > another kind: {}; > last: {}
in goes {}. > in goes {}. > and in goes {}|{} must be there, > so must {}, > so must {}
step %: {}; > step %: {}; > step %: {}|{}? yes. > {}? yes. > {}? yes, that too #totals: of the {n} {figures}, {parts}
there are {n} {figures} in all. {parts}|{parts}, which makes {n} {figures}|i count {n} {figures}, of which {parts}
#alike: {n} {nouns}: {parts}|{nouns}, {n} in all: {parts}|only {nouns}, {n} of them, {parts} #part: {k} {is} {np}
#one: ={a}|nothing but {a}|{a}, all alone|there's a single thing in the picture: {a}|i need only one shape. it's {a}
what's in the picture? {a} #many: ={a}|{s}, and {more} more just like it|when i count the {p}, i want to get to {n}
{s}, drawn {n} times|{s}; copy it until there are {n}|not one but {n} {p}|{p}, and i mean {n} of them|={n} of those {p}
{p}. how many? {n}|{n} times the same: {s}
#tell: {r} {is} {x}|make {r} {x}|{r}: {x}|{r}, by the way, {is} {x}|don't forget that {r} {is} {x}|{r} should be {x}
i want {r} {x}|what {is} {r} like? {x}|{r} {is} not {wrong} but {x} #tell all: {all} {x}, not {wrong}|{all} alike: {x}
{all} {x}|{x}, {all}|make {all} {x} #tell rest: {all} {y}, except {r}: {x}|every shape {y} but {r}, which {is} {x}
only {r} {is} {x}, the rest {y} #tell two: one kind is {x}, that's {r}, the other kind {y}
{r} {is} {x}, the other {others} {y}|{r} {x} but the other {others} {y} #tell in order: {names}s in that order: {looks}
{names}s (same order): {looks}|{looks}, respectively, for the {names}s #same: {r} {is} of the same {names} as {q}
{q} and {r} share one {names}|give {r} the {names} of {q} #fix: make {r} {right} instead of {wrong}, i changed my mind
oops, {r} should be {right}, not {wrong}|correction: {r} {is} {right} rather than {wrong}
no wait, {r} {is} {right}, not {wrong} #fix shape: correction, {right} instead of {wrong} for {r}
no wait, {r}: {right}, not {wrong} #fix count: no wait, {right} and not {wrong}|make that {right}, not {wrong}
#the shape: the {x} #the color: the {x} {one} #the size: the {x} {one} #places 1: {it}
#places 2: the first {one}/the former|the second {one}/the latter #places 3: the first {one}|the second {one}
the third {one} #both: both|both of them|the two of them #all: all|every one of them|all of them #size: size
#color: colour
#open size: any size will do|the size doesn't matter|i don't care how big or small|the size is up to you
#open color: the shapes can have any colour|i don't care about the colour of the shapes|shape colour: your choice
#open shape: the form can be anything #open background: any background|the background is up to you
i don't mind what's behind #open place: place them anywhere|where they go is up to you
#whole: - what do you want?↵- {body}↵- and behind it?↵- {bg}|hi there,↵↵{body}. {bg} background please.↵↵cheers, {name}
motif: {body}↵backdrop: {bg}|content = {body}; bg = {bg}|layer 1 (back): {bg}. layer 2 (front): {body}
{"prompt": "{body}", "background": "{bg}"}|u: {body}. bg {bg} thx|dear diary, today i saw this {on}: {body}
me: {body}. you: on what? me: {on}|once upon a time there was a/n {bg} {surface}, and on it: {body}
draw("{body}", bg="{bg}") #on: on a/n {bg} {surface}|with the {surface} being {bg}|on a {surface} that is {bg}
against a/n {bg} {surface}|with {bg} behind #surface: page|sheet|wall|piece of paper|canvas|screen #sits: has its place
sits|is|stands|lies #figures: shapes|figures #name: kim|mia|jo|mr. lee #ground: the rest of the picture stays {bg}|{on}
the background? {bg}|what's behind should be {bg}|first i thought of a/n {not_bg} background, but take {bg}
let the background be {bg}
"""
KOREAN = """
#left of: at=왼쪽/왼편/좌측|side=왼쪽|way=왼쪽으로|order=왼쪽부터|line=가로로 #right of: at=오른쪽/오른편/우측
side=오른쪽|way=오른쪽으로|order=오른쪽부터|line=가로로 #above: at=위/위쪽|way=위로/위쪽으로|order=위에서부터|side=위
line=세로로 #below: at=아래/아래쪽/밑|side=아래|way=아래로/아래쪽으로|order=아래에서부터|line=세로로
#corner_a: {side_a} {side_d} #corner_b: {side_b} {side_d} #corner_c: {side_a} {side_c}
#paired: {b}이 있고 그 {at_a}에 {a}이 있어|{a}은 {b} {rel_a} 있어야 돼|{line_a} 나란히 놓는데 {order_a} {a}, {b}
{order_a} {a}, {b} 순서로|{at_a}: {a}↵{at_b}: {b}|{b} {at_b}에 {a}... 아 아니다 반대로, {ra}이 {rb} {at_a}에 오게
{a}을 먼저 그리고 그 {at_b}에 {b}을 그려|{a}에서 {way_b} 가면 {b}이 나와|{a} 그리고 나서 거기서 {way_b} 가서 {b}
{a}이랑 {b}, 이렇게 두 개인데 {ra}이 {rb} {rel_a} 있어|친구 둘이 있는데 {a}이랑 {b}, {ra}이 {rb} {at_a}에 앉아 있대
{b} {at_a}에 뭐가 있냐면 {a}|={a}의 {at_b} 자리에 {b}|{a}이 {b} {at_b}에 있으면 안 되고 {at_a}에 있어야 해
{b} {at_b}에 말고 {at_a}에 {a}|{a}은 {b}을 {at_b}에 두고 있어|그림을 반으로 나눠서 {at_a}에는 {a} {at_b}에는 {b}
{at_b}에 {b}, 그 반대쪽인 {at_a}에 {a}|{at_a} 건 {a}이고 {at_b} 건 {b}이야|{a} 보이고 {way_b} 눈을 돌리면 {b}
{a}이 {b}보다 더 {at_a}에 있게|{a}의 {at_b} 이웃은 {b}이에요|{a}은 {at_a}, {b}은 {at_b}
#paired on: {on} {a}이 있고 그 {at_b}에 {b}|{on} {order_a} {a}, {b}
#tripled: {a}이 있고 그 {at_b}에는 {b}, 그리고 {ra} {at_c}에는 {c}|{a}에서 {way_b} 가면 {b}, {ra}에서 {way_c} 가면 {c}
{a} 기준으로 {at_b} {b}, {at_c} {c}|{a}, {b}, {c} 이렇게 셋인데 첫째가 둘째 {rel_a}, 그리고 첫째가 셋째 {rel_d} 있어
{b}은 {a}의 {at_b}, {c}은 {ra}의 {at_c}|{a} {at_b}에 {b}, 그리고 {ra} {at_d}... 아니 {at_c}에 {c}
{corner_a}: {a}↵{corner_b}: {b}↵{corner_c}: {c}|{a} 먼저 놓고, {ra} {at_b}에 {b}, 다시 {ra} {at_c}에 {c}
{order_a} {a}, {b}. 그리고 {order_d} {ra}, {c}|{a}의 이웃은 둘, {at_b}에는 {b}, {at_c}에는 {c}
{a}은 {b} {rel_a} 있으면서 {c} {rel_d} 있어
네 칸으로 나눠서 {corner_a} 칸 {a}, {corner_b} 칸 {b}, {corner_c} 칸 {c}, 남은 칸은 비움
#paired refs: {ra}은 {rb} {rel_a}|{rb} {at_a}에 {ra} 놓기|{ra}이 {rb}보다 더 {at_a}에 오게|{ra}이 {at_a}, {rb}이 {at_b}
{order_a} {ra}, {rb} 순|둘 중에 {at_a} 건 {ra}|{ra}은 {rb} {at_b} 아니고 {at_a}
#tripled refs: {ra}은 {rb} {rel_a}, 그리고 {rc} {rel_d} 있어|{rb}은 {ra}의 {at_b}, {rc}은 {ra}의 {at_c}
{ra} {at_b}에 {rb}, {ra} {at_c}에 {rc}
#chains: {} 있고 > {} 있고 > {} 있어|{}뿐만 아니라 > {}에다가 > {}도|나는 {}, > 동생은 {}, > 엄마는 {} 그렸는데 그거 다
{}도 그리고 > {}도 그리고 > {}도 그려|%번 {}, > %번 {}, > %번 {}|한 종류는 {}, > 또 한 종류는 {}, > 마지막은 {}
일단 {}. > 또 {}. > 그리고 {}|={}이랑 > {}이랑 > {}|☐ {}↵ > ☐ {}↵ > ☐ {}|{} 말고도 > {} 말고도 > {}도 있어야 해
뭐가 있냐면 {}, > {}, > {}|{}? 응. > {}? 응. > {}? 그것도 #totals: 도형은 총 {n}인데 {parts}|총 {n} 중에 {parts}
{parts}, 합이 {n} #alike: {nouns}만 {n}, {parts}|{nouns}이 {n}인데 {parts} #part: {k}은 {np}
#one: ={a}|{a}만 덩그러니|딱 하나, {a}|그림에는 {a}밖에 없어|필요한 건 {a}뿐이야 #many: {p}을 세어 보면 {n}|={a}
{s} 하나, 그리고 똑같은 걸로 {more} 더|{p}, 몇 개냐면 {n}|{n} 다 {p}이야|한 개 말고 {n}, {p}
#tell: {r}은 {x}|{r}은 {wrong} 아니고 {x}|{r}은 {x}으로|{r}은 꼭 {x}이어야 해|{r}은 {x}이면 좋겠어|참, {r}은 {x}이에요
{r}: {x} #tell all: {all} {x}으로|{all} {x}|{x}으로 {all} 통일|{wrong} 말고 {all} {x}|도형은 {all} {x}이에요
#tell rest: {r}만 {x}, 나머지는 {y}|{r} 빼고 다 {y}, {r}은 {x}|전부 {y}인데 {r}만 {x} #tell two: {r}은 {x}, 다른 건 {y}
{r}은 {x}이고 나머지는 {y}|{r}이 {x}인 대신 다른 건 {y} #tell in order: {names}은 말한 순서대로 {looks}
{names} 순서대로 {looks} #same: {r}은 {q}과 {names}이 같아|{r}은 {q}이랑 똑같은 {names}으로
{names}은 {r}도 {q}이랑 똑같이 #fix: 아 잠깐, {r}은 {wrong} 말고 {right}|아니다, {r}은 {wrong} 아니고 {right}으로
다시 생각해 보니 {r}은 {wrong} 대신 {right}이 좋겠어 #fix count: 아니 {wrong} 말고 {right} #the shape: {x}
#the color: {x} 거 #the size: {x} 거 #places 1: 그거 #places 2: 첫 번째 거/앞에 말한 거|두 번째 거/뒤에 말한 거
#places 3: 첫 번째 거|두 번째 거|세 번째 거 #both: 둘 다 #all: 전부|모두|다 #size: 크기 #color: 색
#open size: 크기는 상관없어|크기는 알아서 #open color: 도형 색은 아무거나|무슨 색 도형이든 괜찮아
#open shape: 모양은 아무거나 #open background: 배경은 아무거나|배경은 맘대로 #open place: 배치는 알아서|위치는 자유
#whole: - 뭐 그려줄까?↵- {body}↵- 배경은?↵- {noun}|안녕하세요 팀장님,↵{body}. 배경은 {noun}입니다.↵감사합니다
앞: {body} / 뒤: {noun}|내용: {body}↵배경: {noun}|오늘의 일기: {on} 이런 게 있었다. {body}
1겹(맨 뒤): {noun}. 2겹: {body}|옛날에 {on} 이런 게 살았대: {body}|제목: 그림 요청↵{body}↵배경 {noun} #on: {bg} 벽 앞에
{bg} 종이 위에|{noun} 도화지에|온통 {noun}인 곳에|{bg} 배경 위에 #ground: 배경은 원래 {not_noun} 하려다 {noun}으로|{on}
배경만큼은 꼭 {noun}|배경? {noun}|나머지 공간은 전부 {noun}
"""
TABLES = [{k: re.split("[|\n]", v.strip()) for k, v in re.findall("#(.*?): ([^#]*)", t)} for t in (ENGLISH, KOREAN)]
AGREE = ({"is": "is", "one": "one", "it": "it"}, {"is": "are", "one": "ones", "it": "these"})  # with one, with several
GROUPS = {"a": (0, None), "b": (1, None), "c": (2, None), "p": (0, ""), "s": (0, "a/n")}  # p, s: the kind, one of it
VOWEL = {"은": "는", "을": "를", "과": "와", "이랑": "랑", "이고": "고", "이야": "야", "이에요": "예요", "이면": "면"}
VOWEL |= {"이어야": "여야", "이": "가", "으로": "로"}  # what particles are after a vowel
SLOT = re.compile(rf"{{(\w*)}}((?:{'|'.join(VOWEL)})(?![가-힣]))?")


class OtherSpeaker(odd_users.OddSpeaker):
    """A user of any age and trade; arguments and attributes as for `Speaker`."""

    def _say(self, template: str, **values: str) -> str:
        """Return a template, or one of a section, with its slots filled from left to right, by `values` first."""

        def filled(slot: re.Match) -> str:
            text, particle = values[slot[1]] if slot[1] in values else self._slot(slot[1]), slot[2] or ""
            final = (ord((re.findall("[가-힣]", text) or "가")[-1]) - 0xAC00) % 28
            return text + (VOWEL.get(particle, "") if final in ((0, 8) if particle == "으로" else (0,)) else particle)

        return SLOT.sub(filled, self.rng.choice(self.table.get(template, [template])))

    def _slot(self, name: str) -> str:
        kind, _, who = name.partition("_")
        if name in self.values or name in self.table:
            return self.values[name] if name in self.values else self._say(name)
        if name in GROUPS or name[1:] in GROUPS:
            return self._group(*GROUPS[name]) if name in GROUPS else self._about(GROUPS[name[1:]][0])["r"]
        facts = dict(fact.split("=") for fact in self.table[self.where[who]])
        return self.word(self.where[who]) if kind == "rel" else self.rng.choice(facts[kind].split("/"))

    def _plain(self, *values: str | int) -> str:
        """Return words for looks, a shape or a number; in Korean, nouns."""
        words = [world.NUMBER_WORDS[value] if isinstance(value, int) else value for value in values]
        if not self.korean:
            return " and ".join(word if word in world.COUNTS else self.word(word) for word in words)
        nouns = {"small": "작은 거", "big": "큰 거", "one": "한 개"} | odd_words.COLOR_NOUNS
        return " ".join(nouns.get(word) or users.KOREAN[word][0] for word in words)

    def _about(self, index: int, avoid: str = "") -> dict[str, str]:
        """Return `r`, words that refer to a group (by a look that no other has, or its place), and what agrees."""
        group, others, forms = self.shown[index], [*self.shown[:index], *self.shown[index + 1 :]], []
        for name in world.LOOK:
            if group[name] and name != avoid and all(other[name] not in (None, group[name]) for other in others):
                noun = self._plain(group[name]) if self.korean else self.spoken.get(group[name], group[name])
                noun = world.plural(noun, group["count"]) if name == "shape" and not self.korean else noun
                forms.append(self._say(f"the {name}", x=noun.removesuffix(" 거"), **AGREE[group["count"] > 1]))
        places = self.table[f"places {len(self.shown)}"][self.said.index(index)]
        forms += self._say(places, **AGREE[group["count"] > 1]).split("/")
        return AGREE[group["count"] > 1] | {"r": self.rng.choice(forms)}

    def _group(self, index: int, number: str | None = None) -> str:
        """Return the words for a group; a number "a/n" is for one of its shapes, "" for its kind alone."""
        group, korean, before = self.shown[index], self.korean, [self.shown[said]["shape"] for said in self.said[-1:]]
        self.said += [] if index in self.said else [index]
        looks = [group[name] for name in ("size", "color") if group[name]]
        short = group["shape"] in before and group["shape"] and looks and not korean and self.rng.random() < 0.4
        if number is None and not short:
            ways = [users.Speaker, free_users.FreeSpeaker, odd_users.OddSpeaker]
            way = self.rng.choice(ways[: 1 if korean or self.slip else 3])
            return (way._korean_phrase if korean else way._english_phrase)(self, group)
        noun = "one" if short else self.word(group["shape"]) if group["shape"] else ("shape", "도형")[korean]
        if number is None:
            number = "a/n" if group["count"] == 1 else self.word(world.NUMBER_WORDS[group["count"]])
        looks = [self.rng.choice(users.KOREAN[look][:3]) if korean else self.word(look) for look in looks]
        noun = noun if korean else world.plural(noun, 1 if number == "a/n" else group["count"])
        return " ".join(("" if korean else number, *looks, noun)).strip()

    def _tell(self, names: list[str]) -> str:
        """Return the looks that were not said of each group with it, for all at once or one by one."""
        values, chance = [[self.groups[index][name] for name in names] for index in self.said], self.rng.random()
        count, looks = len(values), [self._plain(*value) for value in values]
        rare = [place for place in range(count) if values.count(values[place]) == 1]
        section = ("tell", "tell two", "tell rest" if len(rare) == 1 else "tell")[count - 1]
        if count > 1 and (not rare or (len(names) == 1 and chance < 0.4)):
            section = "tell in order" if rare else "tell all"
        places = {"tell": range(count), "tell rest": rare}.get(section, [0])
        said = [self._about(index) | {"x": look} for index, look in zip(self.said, looks, strict=True)]
        more = {"names": self._slot(names[0]), "looks": ", ".join(looks), "others": said[-1]["one"]}
        more["all"] = self._slot("both" if sum(group["count"] for group in self.groups) == 2 else "all")
        kinds = {"color": world.COLORS, "size": world.SIZES}[names[-1]]
        wrong = [self._plain(self.rng.choice([kind for kind in kinds if kind != value[-1]])) for value in values]
        return "; ".join(self._say(section, y=looks[i - 1], wrong=wrong[i], **said[i], **more) for i in places)

    def _list(self) -> str:
        """Return the groups in a list, or as parts of a total, or with the shape that they share said once."""
        groups, shape, chance = self.shown, self.shown[0]["shape"], self.rng.random()
        alike = shape and all(group["shape"] == shape and group["color"] for group in groups)
        if self.slip or chance < (0.4 if alike else 0.8):
            chain = self.rng.choice(self.table["chains"]).split(" > ")
            steps = enumerate(chain if len(groups) == 3 else [chain[0], chain[-1]])
            return " ".join(self._say(step.replace("%", str(i + 1)), **{"": self._group(i)}) for i, step in steps)
        parts, self.said = [], [*range(len(groups))] if alike else []
        for index, group in enumerate(groups):
            several, looks = group["count"] > 1, [group[name] for name in ("color", "size") if group[name]]
            words = self._plain(*looks) if alike else self._group(index, "" if several else "a/n")
            parts.append(self._say("part", k=self._plain(group["count"]), np=words, **AGREE[several]))
        values = {"n": self._plain(sum(group["count"] for group in groups)), "parts": ", ".join(parts)}
        nouns = world.plural(self.word(shape), 1 if self.korean else 2) if alike else ""
        return self._say("alike" if alike else "totals", nouns=nouns, **values)

    def _parts(self, scene: dict) -> list[str]:
        """Return what the user says of the shapes, in one or several sentences."""
        choose, chance, first, kind = self.rng.choice, self.rng.random, scene["objects"][0], len(scene["objects"])
        self.table, self.groups, self.spoken, self.said, self.slip = TABLES[self.korean], scene["objects"], {}, [], []
        names = [name for name in ("color", "size") if first[name]]
        late = choose((names, names[:1], names[1:])) if chance() < 0.4 else []
        self.shapes = {group["shape"] for group in self.groups}
        self.shown = [group | dict.fromkeys(late) for group in self.groups]
        sides = [relation for _, relation, _ in scene["relations"]]
        sides = [*sides[:1], *(world.RELATIONS[side][0] for side in sides), *sides[1:]]
        self.where, ground = dict(zip("abcd", sides, strict=False)), self.ground
        self.values = {"bg": ground and self.word(ground), "noun": users.KOREAN_NOUNS.get(ground)}
        index, other, after = self.rng.randrange(kind), self.rng.randrange(kind), ""
        name = choose(("color", "size", "shape", "count")[: 3 + (kind == 1)])
        right = self.shown[index][name]
        if right and self.category != "negation" and chance() < 0.12:
            choices = {"shape": world.SHAPES, "color": world.COLORS, "size": world.SIZES, "count": (1, 2, 3, 4)}[name]
            used = [right] if name == "size" else [group[name] for group in self.groups]
            self.shown[index][name] = wrong = choose([value for value in choices if value not in used])
            self.slip, after = [right, wrong], f"fix {name}" if f"fix {name}" in self.table else "fix"
        elif right and index != other and name != "shape" and right == self.shown[other][name]:
            self.shown[index][name], self.values["names"], after = None, self._slot(name), "same"
        count = self.shown[0]["count"]
        self.values |= {"n": self._plain(count), "more": self._plain(max(1, count - 1))}
        section = ("={a}" if self.slip else "one" if count == 1 else "many", "paired", "tripled")[kind - 1]
        if self.frame and len(sides) == 2 and chance() < 0.4:
            section, self.frame = "paired on", "{body}"
        if kind == 1 or (sides and chance() < 0.7) or self.frame == "{body}":
            parts = [self._say(section)]
        else:
            parts = [self._list(), *([self._say(section + " refs")] if sides else [])]
        parts[0] = parts[0][1:] if parts[0][0] == "=" else f": {parts[0]}"
        if after:
            said = zip(("right", "wrong"), map(self._plain, self.slip), strict=False)
            parts.append(self._say(after, q=self._about(other)["r"], **dict(said), **self._about(index, name)))
            self.shown[index][name] = right
        parts += [self._tell(names) for names in ([[name] for name in late] if chance() < 0.4 else [late]) if names]
        silent = [name for name in (*world.LOOK, "background") if (first | {"background": ground})[name] is None]
        silent += ["place"] if kind > 1 and not sides and chance() < 0.3 else []
        parts += [self._say(f"open {name}") for name in silent if chance() < 0.5]
        if ground and not self.frame:
            wrong = choose([name for name in world.BACKGROUNDS if name != ground])
            values = {"not_bg": wrong, "not_noun": users.KOREAN_NOUNS[wrong], "a_bg": f"a/n {self.values['bg']}"}
            values |= {"adverb": choose(free_users.KOREAN_DYED[ground])}
            clause = choose(("ground", choose((odd_words.GROUNDS, odd_words.KOREAN_GROUNDS)[self.korean])))
            parts.insert(choose((0, len(parts))), f": {self._say(clause, **values)}")
        return [choose((". ", "; ", ". ", "... ", "\n")).join(parts)]  # no background between: "it" is a shape

    def _draft(self, scene: dict) -> str:
        """Return a prompt of any length, in a frame of its own or with an opening and a closing of others."""
        self.ground = scene["background"]
        self.frame = "whole" if self.ground and self.rng.random() < 0.4 else ""
        body = self._parts(scene)[0] if self.frame else super()._draft(scene | {"background": None})
        text = tidied(self._say(self.frame or "{body}", body=body.removeprefix(": ")))
        return re.sub(r"[\s,.]*\bnot on \w+$", "", text)


def tidied(text: str) -> str:
    """Return a prompt with its marks, spaces, articles and line breaks in order."""
    text = text.replace("↵", "\n").replace(" : ", ": ")
    text = re.sub(r"(^|[,.;:=!?~\n-]) *: ", r"\1 ", text).strip()
    text = re.sub(r",(?=\s*([,.;:!?)\n]|$))| +(?=[,\n])|(?<=\n) +", "", text)
    text = re.sub(r"([?!])\.|(?<!\.)\.\.(?!\.)", lambda found: found[1] or ".", text)
    text = re.sub(r"a/n (?=\W*(\w))", lambda found: "an " if found[1] in "aeiou" else "a ", text)
    return re.sub(r"\b(left|right|위|아래) (top|bottom|왼쪽|오른쪽)\b", r"\2 \1", text)
