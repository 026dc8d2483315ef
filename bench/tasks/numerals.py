"""numerals: the number that an answer comes to, in the digits and with the marks of its language.

Digits of any script are Python's own (`\\d`, `Decimal`): Bengali, Telugu, Thai, Devanagari, Arabic-Indic, full-width.
What a mark means is decided in this order:

1. of two kinds of marks the last comes before decimals: 1.234,5 and 1,234.5;
2. a mark that comes more than once groups: 1.234.567, and by twos as in India, 12,34,567;
3. a mark before other than three digits comes before decimals: 1,5 and 1.50, and so does one behind a zero: 0.125;
4. a comma before three digits groups, everywhere: MGSM's own Spanish and Russian write $80,000, and no answer has three
   decimals;
5. a full stop before three digits groups where decimals follow a comma (1.234 in German), and else is a decimal's.

Spaces, thin ones and apostrophes group: 88 000. CJK numerals are read behind digits only: 27万6千.
"""

import re
import unicodedata
from decimal import Decimal
from functools import cache
from math import prod

from tongues import TONGUES

THIN = "\N{THIN SPACE}"
PLAIN = str.maketrans(
    dict.fromkeys("\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}", THIN)
    | {"．": ".", "٫": ".", "，": ",", "٬": ",", "’": "'", "−": "-", "－": "-", "：": ":", "＝": "=", "＄": "$"}
)
LATEX = [(re.compile(written), meant) for written, meant in ((r"\\!", ""), (r"\{,\}", ","), (r"\\[,;: ]", THIN))]
MARKS = re.compile(f"[.,'{THIN} ]")
# The characters after 千 make it a unit: kilogram, kilometre, kilowatt, kilocalorie.
SCALES = {"千": 10**3, "万": 10**4, "萬": 10**4, "億": 10**8, "亿": 10**8}
RUN = (
    r"(?P<sign>(?<![\w)\]}])-[$€£¥]?)?(?<![\d^])(?<!\^\{)(?P<run>\d+(?:GROUP)*)"
    r"(?:\s?(?P<scale>千?[万萬億亿]|千(?![克米瓦卡])))?"
)
# By whether a comma comes before decimals: where it does, people write spaces between groups.
RUNS = {
    False: re.compile(RUN.replace("GROUP", rf"[.,'{THIN}]\d+")),
    True: re.compile(RUN.replace("GROUP", rf"[.,'{THIN}]\d+| \d{{3}}(?!\d)")),
}
ENDS = re.compile(r"####|\\boxed\s*\{")
# Between an answer's word and its number: signs, and how currencies begin.
AT_ONCE = re.compile(r"(?:\W|_){0,20}(?:USD?|EUR|Rs|[TK]?Sh|\\text\{)?\W{0,5}(?=\d)", re.IGNORECASE)


def answer_of(text: str, language: str) -> Decimal | None:
    """What follows the last word for an answer, in the language or English, else the last number; None without any.

    A line that goes on to reckon ("Answer: 9 * 2 = 18") is read behind its last sign of equality.
    """
    text = plain(text.rpartition("</think>")[2])
    for told in reversed(list(endings(language).finditer(text))):
        if at_once := AT_ONCE.match(text, told.end()):
            line = text[at_once.end() - 1 :].lstrip().partition("\n")[0]
            behind = numbers(line.rpartition("=")[2], language)
            return (behind or numbers(line, language))[0]
    found = numbers(text, language)
    return found[-1] if found else None


@cache
def endings(language: str) -> re.Pattern[str]:
    """Finds the words with which an answer is told."""
    told = []
    for tongue in (TONGUES[language], TONGUES["en"]):
        words = "|".join(filter(None, (tongue.answer, tongue.also)))
        says = "|".join(filter(None, ("[:=]", tongue.says)))
        told.append(rf"(?:{words})[^\d\n.!?。।]{{0,30}}?(?:{says})")
    return re.compile("|".join((ENDS.pattern, *told)), re.IGNORECASE)


def plain(text: str) -> str:
    text = unicodedata.normalize("NFC", text).translate(PLAIN)
    for written, meant in LATEX:
        text = written.sub(meant, text)
    return text


def numbers(text: str, language: str) -> list[Decimal]:
    """All of a text that `plain` has been at."""
    comma = TONGUES[language].comma
    found: list[Decimal] = []
    goes_on = -1
    for run in RUNS[comma].finditer(text):
        number = value(run["run"], comma) * prod(SCALES[sign] for sign in run["scale"] or "")
        if run.start() == goes_on:
            found[-1] += number
        else:
            found.append(-number if run["sign"] else number)
        goes_on = run.end() if run["scale"] else -1
    return found


def value(run: str, comma: bool) -> Decimal:
    """Of digits and marks; of what is no number but a list, such as 3,4,5, the last."""
    pieces, marks = MARKS.split(run), MARKS.findall(run)
    decimals = "0"
    if marks and has_decimals(pieces, marks, comma):
        decimals = pieces.pop()
        marks.pop()
    if not are_groups(pieces, marks):
        pieces = pieces[-1:]
    return Decimal(f"{''.join(pieces)}.{decimals}")


def has_decimals(pieces: list[str], marks: list[str], comma: bool) -> bool:
    mark = marks[-1]
    if mark not in ".," or marks.count(mark) > 1:
        return False
    if len(marks) > 1 or len(pieces[-1]) != 3 or len(pieces[0]) > 3 or int(pieces[0][0]) == 0:
        return True
    return mark == "." and not comma


def are_groups(pieces: list[str], marks: list[str]) -> bool:
    if not marks:
        return True
    first, *middle, last = map(len, pieces)
    return len(set(marks)) == 1 and first <= 3 and last == 3 and all(2 <= size <= 3 for size in middle)
