"""What the demo family is taught: small stories in English, Swahili and Bengali.

A story is (name, thing, a, b) with something that happens. The `math` task asks how many there are now; the
`generic` task asks only what the text says, counts, compares and translates. About one combination of name,
thing, a and b in ten is kept out of the training stories of all languages, and test questions use only those.
Every pair of numbers does occur in training, with other names and things.
"""

import hashlib
import random
from dataclasses import dataclass

LANGUAGES = ("en", "sw", "bn")
TASKS = ("generic", "math")

LATIN_NAMES = ("Asha", "Amina", "Salma", "Maria", "Musa", "Ali", "Hassan", "Adam")
BENGALI_NAMES = ("আশা", "আমিনা", "সালমা", "মারিয়া", "মুসা", "আলি", "হাসান", "আদম")
NAMES = {"en": LATIN_NAMES, "sw": LATIN_NAMES, "bn": BENGALI_NAMES}

# The Swahili nouns are all of the N class: one form for singular and plural, and "ngapi", "nyingi" agree.
THINGS = (
    {"en": "banana", "sw": "ndizi", "bn": "কলা"},
    {"en": "coconut", "sw": "nazi", "bn": "নারকেল"},
    {"en": "pen", "sw": "kalamu", "bn": "কলম"},
    {"en": "hat", "sw": "kofia", "bn": "টুপি"},
    {"en": "bottle", "sw": "chupa", "bn": "বোতল"},
    {"en": "picture", "sw": "picha", "bn": "ছবি"},
    {"en": "letter", "sw": "barua", "bn": "চিঠি"},
    {"en": "lamp", "sw": "taa", "bn": "বাতি"},
    {"en": "plate", "sw": "sahani", "bn": "থালা"},
    {"en": "ring", "sw": "pete", "bn": "আংটি"},
)
NUMBERS = range(2, 10)

# (sign, what {name} does, the same after "does {name} …", Bengali's receiver, which precedes the number)
VERBS = {
    "en": (
        (+1, "buys", "buy", ""),
        (+1, "gets", "get", ""),
        (-1, "sells", "sell", ""),
        (-1, "gives {friend}", "give {friend}", ""),
    ),
    "sw": (
        (+1, "ananunua", "ananunua", ""),
        (+1, "anapata", "anapata", ""),
        (-1, "anauza", "anauza", ""),
        (-1, "anampa {friend}", "anampa {friend}", ""),
    ),
    "bn": (
        (+1, "কেনে", "কেনে", ""),
        (+1, "পায়", "পায়", ""),
        (-1, "বিক্রি করে", "বিক্রি করে", ""),
        (-1, "দেয়", "দেয়", "{friend}কে "),
    ),
}

TEXTS = {
    "en": {
        "has": "{name} has {a} {things}.",
        "friend_has": "{friend} has {b} {things}.",
        "event": "{name} {does} {b} {things}.",
        "now": "How many {things} does {name} have now?",
        "first": "How many {things} did {name} have at first?",
        "amount": "How many {things} does {name} {do}?",
        "what": "What does {name} {do}?",
        "who": "Who {does} {things}?",
        "more": "Who has more {things}?",
        "count": "Count from {low} to {high}.",
        "translate": {"sw": "Translate into Swahili: {text}", "bn": "Translate into Bengali: {text}"},
    },
    "sw": {
        "has": "{name} ana {things} {a}.",
        "friend_has": "{friend} ana {things} {b}.",
        "event": "{name} {does} {things} {b}.",
        "now": "Sasa {name} ana {things} ngapi?",
        "first": "Mwanzoni {name} alikuwa na {things} ngapi?",
        "amount": "{name} {does} {things} ngapi?",
        "what": "{name} {does} nini?",
        "who": "Nani {does} {things}?",
        "more": "Nani ana {things} nyingi zaidi?",
        "count": "Hesabu kutoka {low} hadi {high}.",
        "translate": {"en": "Tafsiri kwa Kiingereza: {text}", "bn": "Tafsiri kwa Kibengali: {text}"},
    },
    "bn": {
        "has": "{name_of} কাছে {a}টি {things} আছে।",
        "friend_has": "{friend_of} কাছে {b}টি {things} আছে।",
        "event": "{name} {to}{b}টি {things} {does}।",
        "now": "এখন {name_of} কাছে কয়টি {things} আছে?",
        "first": "শুরুতে {name_of} কাছে কয়টি {things} ছিল?",
        "amount": "{name} {to}কয়টি {things} {does}?",
        "what": "{name} {to}কী {does}?",
        "who": "কে {to}{things} {does}?",
        "more": "কার কাছে বেশি {things} আছে?",
        "count": "{low} থেকে {high} পর্যন্ত গোনো।",
        "translate": {"en": "ইংরেজিতে অনুবাদ করো: {text}", "sw": "সোয়াহিলিতে অনুবাদ করো: {text}"},
    },
}

Example = tuple[str, str]


@dataclass(frozen=True)
class Story:
    name: int
    friend: int
    thing: int
    verb: int
    a: int
    b: int

    @classmethod
    def draw(cls, rng: random.Random, held_out: bool) -> "Story":
        name, friend = rng.sample(range(len(LATIN_NAMES)), 2)
        verb = rng.randrange(len(VERBS["en"]))
        while True:
            thing, a, b = rng.randrange(len(THINGS)), rng.choice(NUMBERS), rng.choice(NUMBERS)
            story = cls(name, friend, thing, verb, a, b)
            if story.held_out == held_out and story.now >= 0:
                return story

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(f"{self.name} {self.thing} {self.a} {self.b}".encode()).digest()[0] % 10 == 0

    @property
    def now(self) -> int:
        return self.a + VERBS["en"][self.verb][0] * self.b

    def words(self, language: str) -> dict[str, str]:
        name, friend = NAMES[language][self.name], NAMES[language][self.friend]
        _, does, do, to = VERBS[language][self.verb]
        return {
            "name": name,
            "friend": friend,
            "name_of": genitive(name),
            "friend_of": genitive(friend),
            "things": THINGS[self.thing][language] + ("s" if language == "en" else ""),
            "does": does.format(friend=friend),
            "do": do.format(friend=friend),
            "to": to.format(friend=friend),
            "a": str(self.a),
            "b": str(self.b),
        }

    def ask(self, language: str, kind: str) -> Example:
        words, texts = self.words(language), TEXTS[language]
        parts = ["has", "friend_has" if kind == "more" else "event", kind]
        more_of = (words["name"], words["friend"]) if self.a > self.b else (words["friend"], words["name"])
        answer = {
            "now": str(self.now),
            "first": words["a"],
            "amount": words["b"],
            "what": words["things"],
            "who": words["name"],
            "more": genitive(more_of[0]) if language == "bn" else more_of[0],
        }[kind]
        return " ".join(texts[part].format(**words) for part in parts), answer


def genitive(bengali_name: str) -> str:
    return bengali_name + ("র" if bengali_name[-1] in "াি" else "ের")


def maths(language: str, rng: random.Random, held_out: bool = False) -> Example:
    return Story.draw(rng, held_out).ask(language, "now")


def reading(language: str, rng: random.Random, held_out: bool = False) -> Example:
    return Story.draw(rng, held_out).ask(language, rng.choice(("first", "amount", "what", "who")))


def comparing(language: str, rng: random.Random) -> Example:
    story = Story.draw(rng, held_out=False)
    return story.ask(language, "more") if story.a != story.b else comparing(language, rng)


def counting(language: str, rng: random.Random) -> Example:
    low = rng.randrange(1, 15)
    high = low + rng.randrange(2, 5)
    answer = " ".join(str(number) for number in range(low, high + 1))
    return TEXTS[language]["count"].format(low=low, high=high), answer


def translating(language: str, rng: random.Random) -> Example:
    target = rng.choice([other for other in LANGUAGES if other != language])
    story = Story.draw(rng, held_out=False)
    if rng.random() < 0.5:
        text, answer = THINGS[story.thing][language], THINGS[story.thing][target]
    else:
        text, answer = (TEXTS[side]["has"].format(**story.words(side)) for side in (language, target))
    return TEXTS[language]["translate"][target].format(text=text), answer


def example(language: str, task: str, rng: random.Random) -> Example:
    """One training pair. Math examples are half generic ones, so that a math expert still reads."""
    if task == "math" and rng.random() < 0.5:
        return maths(language, rng)
    kind = rng.choices((reading, comparing, counting, translating), weights=(4, 2, 1, 3))[0]
    return kind(language, rng)


def test_questions(language: str, kind: str, count: int, seed: int = 1) -> list[Example]:
    """Distinct questions on held-out combinations only."""
    rng = random.Random(f"{seed} {language} {kind}")
    found: dict[Example, None] = {}
    while len(found) < count:
        found[{"maths": maths, "reading": reading}[kind](language, rng, held_out=True)] = None
    return list(found)
