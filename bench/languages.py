"""How often `math+auto` finds the language of what is asked, and what that takes.

    python bench/languages.py --data MGSM_REV2 [--csv out.csv]

MGSM_REV2 holds LANG.jsonl with a `question` in each line: 250 of a school in each of 11 languages
(github.com/dayeonki/multilingual_reasoning, data/mgsm_revised, CC-BY-SA-4.0). Families have some of these languages;
what is in another one should go to the fallback. Each question is asked whole, as five, three and one of its words (15,
9 and 3 characters where words are not set apart), with formulas, with half of its words in English, and, where it is
not written in Latin letters, romanised (by anyascii, `pip install anyascii`), which no model of the family has learned.

Beside what the server does (family and English by n-grams up to five, 48 languages by trigrams): the family's
languages alone, and all 75, by n-grams up to five. Expected: the family alone finds its own best and takes most of what
is in other languages for one of them. Then, with --requests, what it adds to a request: the demo's server is asked
for `math+auto` and for `math+swahili` in turns.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "server"))

import httpx  # noqa: E402
import yaml  # noqa: E402
from lingua import LanguageDetector, LanguageDetectorBuilder  # noqa: E402
from serving import serving  # noqa: E402

from layerloom.composer import Family  # noqa: E402
from layerloom.server.languages import Languages, spoken  # noqa: E402
from shared.report import Report  # noqa: E402

DEMO = ROOT / "demo"
UNSPACED = ("ja", "th", "zh")
LATIN = ("de", "en", "es", "fr", "sw")
FAMILIES = ("sw", "bn sw", "de es fr", "bn de es fr ja ru sw te th zh", "bn de en es fr ja ru sw te th zh")
FORMULA = r" $\frac{x}{2} + \sqrt{y} = 16$, \(a_1 < b\) "
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
COLUMNS = ("right", "another of the family", "in none of them: accepted", "English: accepted", "µs, median", "µs, p99")

Choose = Callable[[str], str]
Texts = dict[str, list[str]]


def some_words(code: str, text: str, count: int, chance: random.Random) -> str:
    words = [text[i : i + 3] for i in range(0, len(text), 3)] if code in UNSPACED else text.split()
    first = chance.randrange(max(1, len(words) - count))
    return ("" if code in UNSPACED else " ").join(words[first : first + count])


def forms(questions: Texts) -> dict[str, Texts]:
    """Every question in every form; what a form leaves out has no language there."""
    from anyascii import anyascii

    chance = random.Random(0)
    english = questions["en"]

    def with_formulas(code: str, text: str, _: int) -> str:
        half = len(text) // 2
        return text[:half] + FORMULA + text[half:]

    def half_english(code: str, text: str, number: int) -> str | None:
        other = english[number].split()
        return None if code == "en" else some_words(code, text, 8, chance) + " " + " ".join(other[:8])

    made: dict[str, Callable[[str, str, int], str | None]] = {
        "whole": lambda code, text, _: text,
        "five words": lambda code, text, _: some_words(code, text, 5, chance),
        "three words": lambda code, text, _: some_words(code, text, 3, chance),
        "one word": lambda code, text, _: some_words(code, text, 1, chance),
        "with formulas": with_formulas,
        "half English": half_english,
        "romanised": lambda code, text, _: None if code in LATIN else anyascii(text),
    }
    return {
        name: {
            code: [text for number, each in enumerate(asked) if (text := make(code, each, number)) is not None]
            for code, asked in questions.items()
        }
        for name, make in made.items()
    }


def family_of(root: Path, codes: Sequence[str], below: float) -> Family:
    """A family of a task and these languages; what weights its experts have does not matter here."""
    experts = {code: {"kind": "language", "code": code, "path": str(DEMO / "swahili.safetensors")} for code in codes}
    entries = {
        "base": str(DEMO / "base"),
        "experts": {"math": {"kind": "task", "path": str(DEMO / "math.safetensors")}, **experts},
        "fallback": {"below": below},
    }
    (root / "family.yaml").write_text(yaml.safe_dump(entries))
    return Family.load(root, warn=False)


def served(family: Family) -> Choose:
    languages, auto = Languages(family), family.parse("math+auto")
    languages.prepare()
    return lambda text: languages.choose(auto, [text]).language or ""


def alone(detector: LanguageDetector) -> Choose:
    def choose(text: str) -> str:
        found = detector.detect_language_of(text)
        return "" if found is None else found.iso_code_639_1.name.lower()

    return choose


def row(choose: Choose, codes: Sequence[str], asked: Texts) -> list[float | None]:
    """As COLUMNS says; shares in percent."""
    right = other = own = strange = accepted = 0
    english: list[bool] = []
    times = []
    for code, texts in asked.items():
        for text in texts:
            began = time.perf_counter()
            chosen = choose(text)
            times.append(1e6 * (time.perf_counter() - began))
            if code in codes:
                own += 1
                right += chosen == code
                other += chosen in codes and chosen != code
            else:
                strange += 1
                accepted += chosen in codes
                if code == "en":
                    english.append(chosen in codes)
    times.sort()
    return [
        100 * right / own if own else None,
        100 * other / own if own else None,
        100 * accepted / strange if strange else None,
        100 * statistics.mean(english) if english else None,
        statistics.median(times),
        times[int(0.99 * len(times))],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of LANG.jsonl")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--requests", type=int, default=0, help="to the demo's server, of each of two names")
    args = parser.parse_args()
    questions = {
        file.stem: [json.loads(line)["question"] for line in file.open(encoding="utf-8")]
        for file in sorted(args.data.glob("*.jsonl"))
    }
    report = Report(args.csv, data=f"{sum(map(len, questions.values()))} questions in {' '.join(questions)}")
    asked = forms(questions)
    every = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()
    with tempfile.TemporaryDirectory() as folder:
        for names in FAMILIES:
            codes = names.split()
            ours = served(family_of(Path(folder), codes, 0.5))
            rows = [[form, *row(ours, codes, texts)] for form, texts in asked.items()]
            report.table(f"What the server does, family {names}: percent", ["asked", *COLUMNS], rows)
            kept = [language for code in codes if (language := spoken(code))]
            own = LanguageDetectorBuilder.from_languages(*kept).with_preloaded_language_models().build()
            for title, detector in (("The family's languages alone", own), ("All 75 languages", every)):
                found = [[form, *row(alone(detector), codes, asked[form])] for form in list(asked)[:5]]
                report.table(f"{title}, family {names}: percent", ["asked", *COLUMNS], found)
            limits = []
            for below in THRESHOLDS:
                choose = served(family_of(Path(folder), codes, below))
                limits += [
                    [f"{below:g}", form, *row(choose, codes, asked[form])[:4]] for form in ("whole", "three words")
                ]
            report.table(
                f"Confidence that is asked for, family {names}: percent", ["below", "asked", *COLUMNS[:4]], limits
            )
    if args.requests:
        report.table(
            "A chat request for one token, ms", ["model", "median", "p90"], in_turns(args.requests, questions["sw"])
        )


def in_turns(count: int, questions: Sequence[str]) -> list[list[str | float | None]]:
    """Both names by turns, each with every question cut to what the demo's context holds."""
    times: dict[str, list[float]] = {"math+swahili": [], "math+auto": []}
    with tempfile.TemporaryDirectory() as folder, serving(DEMO, Path(folder) / "log") as server:
        client = httpx.Client(base_url=server.url, timeout=60)
        for number in range(-20, count):
            for name, taken in times.items():
                message = {"role": "user", "content": questions[number % len(questions)][:300]}
                body = {"model": name, "messages": [message], "max_tokens": 1}
                began = time.perf_counter()
                answer = client.post("/v1/chat/completions", json=body)
                if number >= 0:
                    taken.append(1e3 * (time.perf_counter() - began))
                assert answer.status_code == 200, answer.text
    return [[name, statistics.median(taken), sorted(taken)[int(0.9 * count)]] for name, taken in times.items()]


if __name__ == "__main__":
    main()
