"""The number that is read out of an answer. Forms are those of MGSM-Rev2's questions, and ways to end an answer."""

import sys
import unicodedata
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[3] / "bench" / "tasks"))
import maths
from numerals import answer_of
from tongues import TONGUES

NARROW, HARD, WIDE = "\N{NARROW NO-BREAK SPACE}", "\N{NO-BREAK SPACE}", "０１２３４５６７８９"

WRITTEN = {
    "bn": {
        "৫০,০০০ টাকা": 50000,
        "$16.50।": 16.5,
        "$5.00-এ": 5,
        "১.৫ গুণ": 1.5,
        "১,১৪,২০০": 114200,
        "88,000 কপি": 88000,
        "$20,000।": 20000,
        "প্রতিদিন ১৬টি": 16,
    },
    "de": {
        "$80.000": 80000,
        "das 1,2-Fache": 1.2,
        "5.000 Euro": 5000,
        "320,00 $": 320,
        "1.234,5": 1234.5,
        "1.234.567": 1234567,
        "2,125": 2125,
        "0,125": 0.125,
        "88 000": 88000,
        "1’000": 1000,
    },
    "en": {
        "$80,000": 80000,
        "$8,000.": 8000,
        "$19.50.": 19.5,
        "a 2.5% share": 2.5,
        "1,234.5": 1234.5,
        "1,234,567": 1234567,
        "$18.00": 18,
        "3.125": 3.125,
        "1,50": 1.5,
        "the numbers 3,4,5": 5,
        "25 m^2": 25,
        "6 and 12 eggs": 12,
        "it fell to -5": -5,
        "16-3-4": 4,
    },
    "es": {
        "$80,000": 80000,
        "88 000,": 88000,
        "$1.5": 1.5,
        "$15 000": 15000,
        "$2,00,": 2,
        "$0.30.": 0.3,
        "1.234,56": 1234.56,
        "1.234": 1234,
        "1,2 veces": 1.2,
    },
    "fr": {
        "1 000 $": 1000,
        f"23{NARROW}786 habitants": 23786,
        f"5{HARD}000 $": 5000,
        "9 092": 9092,
        "1,5": 1.5,
        "1 234 567,89": 1234567.89,
        "les 40 300": 40300,
        "2 3000": 3000,
    },
    "ja": {
        "彼は80,000ドル": 80000,
        "価格は2.5%、": 2.5,
        "を$19.50で購入": 19.5,
        "8,417人の": 8417,
        f"合計{WIDE[1]}，{WIDE[0] * 3}文": 1000,
        "27万6000ドル": 276000,
        "1億2千万円": 120_000_000,
        "18ドル": 18,
    },
    "ru": {
        "$80,000,": 80000,
        "1,5$": 1.5,
        "88 000": 88000,
        f"15{HARD}000 рублей": 15000,
        "5.600": 5600,
        "320,00": 320,
        "1 234,5": 1234.5,
    },
    "sw": {
        "$8,000.": 8000,
        "$8.50?": 8.5,
        "TSh 1,500": 1500,
        "Ksh500": 500,
        "kilo 3.5": 3.5,
        "kati ya 10 30%": 30,
        "$20,000.": 20000,
    },
    "te": {
        "$19.50కు": 19.5,
        "$2.74లకు": 2.74,
        "2.5%, ": 2.5,
        "౧౮ గుడ్లు": 18,
        "౧,౧౪,౨౦౦": 114200,
        "50,000": 50000,
        "$20,000": 20000,
    },
    "th": {
        "13.00 น.": 13,
        "€1,500": 1500,
        "23,786 คน": 23786,
        "๑๘ ดอลลาร์": 18,
        "๑,๒๓๔.๕": 1234.5,
        "1.2 เท่า": 1.2,
        "$0.20": 0.2,
    },
    "zh": {
        "他以80,000美元": 80000,
        "个$1.5美元": 1.5,
        "1,000。礼": 1000,
        "27.6万美元": 276000,
        "5千克": 5,
        f"共{WIDE[1]}{WIDE[8]}个": 18,
        "23,786。他": 23786,
        "取$15.00，那": 15,
    },
}

TOLD = {
    "bn": ["উত্তর: ১৮", "সুতরাং উত্তর হলো ১৮ ডলার, 2 দিনে।", "**উত্তর:** ১৮"],
    "de": ["Antwort: 18", "Die Antwort lautet 18 $ für 9 Eier.", "Die endgültige Antwort ist: **18**", "Lösung: 18"],
    "en": [
        "Answer: 18",
        "16 - 3 - 4 = 9\n**Answer:**\n\n**18**",
        "The answer is $18 for 9 eggs.",
        "Final answer: 9 * 2 = 18 dollars, every 7 days",
        "So it is \\boxed{18}. Check 9.",
        "\\[ \\boxed{\\$18.00} \\]",
        "16 - 7 = 9 <<16-7=9>>\n#### 18",
        "<think>The answer is 3?</think>She makes 18",
        "To answer this we need 3 numbers. She makes 18",
        "Answer: Janet has 16 eggs and makes 18",
        "The answer is 4. No: the answer is 18, not 4",
    ],
    "es": ["Respuesta: 18", "La respuesta final es 18 dólares en 2 días.", "**Respuesta:** $18,00"],
    "fr": ["Réponse : 18", f"Réponse{HARD}: 18{HARD}$ pour 9 œufs", "La réponse est 18.", "Re\u0301ponse : 18"],
    "ja": ["答え: 18", "答えは18ドルです（9個分）。", "答え：＄１８", "正解は、18"],
    "ru": ["Ответ: 18", "Ответ — 18 долларов за 9 яиц.", "Ответ равен 18"],
    "sw": ["Jibu: 18", "Jibu ni $18 kwa mayai 9.", "Jibu la mwisho ni 18", "The answer is 18. Sawa na 9 x 2."],
    "te": ["సమాధానం: 18", "సమాధానం ౧౮ డాలర్లు, 2 రోజులు.", "జవాబు: ౧౮"],
    "th": ["คำตอบ: 18", "ดังนั้นคำตอบคือ ๑๘ ดอลลาร์ ใน 2 วัน", "คำตอบ: 9 × 2 = 18 ดอลลาร์"],
    "zh": ["答案：18", "答案是18美元，共9个。", "答：18", "所以答案为 １８"],
}


def cases(table: dict[str, dict[str, float]]) -> list[tuple[str, str, float]]:
    return [(language, text, number) for language, texts in table.items() for text, number in texts.items()]


@pytest.mark.parametrize(("language", "text", "number"), cases(WRITTEN))
def test_numbers_as_they_are_written(language: str, text: str, number: float) -> None:
    assert answer_of(text, language) == Decimal(str(number))


@pytest.mark.parametrize(("language", "text"), [(language, text) for language, texts in TOLD.items() for text in texts])
def test_answers_as_they_are_told(language: str, text: str) -> None:
    assert answer_of(text, language) == 18


@pytest.mark.parametrize("zero", ["BENGALI", "TELUGU", "THAI", "DEVANAGARI", "ARABIC-INDIC", "FULLWIDTH"])
@pytest.mark.parametrize("language", TONGUES)
def test_digits_of_any_script(language: str, zero: str) -> None:
    first = ord(unicodedata.lookup(f"{zero} DIGIT ZERO"))
    digits = "".join(chr(first + digit) for digit in (1, 2, 0))
    assert answer_of(f"= {digits}", language) == 120
    assert answer_of(f"{digits}٫{digits[1]}", language) == Decimal("120.2")
    assert answer_of(f"{digits[0]}٬{digits}", language) == 1120


@settings(deadline=None)
@given(st.sampled_from(sorted(TONGUES)), st.integers(0, 10**12), st.integers(0, 99))
def test_every_number_is_read_as_its_language_groups_it(language: str, whole: int, cents: int) -> None:
    swap = str.maketrans(",.", ".,") if TONGUES[language].comma else {}
    assert answer_of(f"{whole:,}".translate(swap), language) == whole
    written = f"{whole:,}.{cents:02}".translate(swap)
    assert answer_of(f"x {written}.", language) == Decimal(f"{whole}.{cents:02}")


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("0१,. -$()=:{}\\\n万Aans୩wer")), st.sampled_from(sorted(TONGUES)))
def test_no_answer_is_too_strange(text: str, language: str) -> None:
    number = answer_of(text, language)
    assert (number is None) == (not any(char.isdecimal() for char in text))


def test_without_a_number_there_is_none() -> None:
    assert answer_of("Sijui.", "sw") is None
    assert maths.mark({"language": "sw", "answer": "2,125", "ends": ""}, ["Sijui."]) == {"acc": 0.0, "no_number": 1.0}


def test_marks_against_the_data_s_own_way_to_write() -> None:
    doc = {"language": "de", "answer": "2,125", "ends": ""}
    assert maths.mark(doc, ["Antwort: 2.125 €"]) == {"acc": 1.0, "no_number": 0.0}
    assert maths.mark(doc | {"answer": "8.0"}, ["8"])["acc"] == 1.0
    goes_on = "Antwort: 8\nFrage: Was ist 2 + 2?\nAntwort: 4"
    assert maths.mark(doc | {"answer": "8", "ends": "\nFrage:"}, [goes_on])["acc"] == 1.0


def test_questions_of_both_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "sw.jsonl").write_text('{"id": 7, "question": "Ngapi?", "answer": "2,125", "replaced": false}\n')
    (found,) = maths.questions(tmp_path, "sw", "chat")
    assert (found["id"], found["answer"]) == (7, "2,125")
    assert found["prompt"].startswith("Ngapi?\n") and "Jibu:" in found["prompt"]
    (tmp_path / "test_Thai.json").write_text('{"query": "How many?", "response": "8.0", "m_query": "เท่าไร"}\n')
    (found,) = maths.questions(tmp_path, "th", "text")
    assert found["id"] == 1 and found["prompt"].startswith("โจทย์: เท่าไร\n") and found["ends"] == "\nโจทย์:"
    assert maths.questions(tmp_path, "sw", "bare")[0]["prompt"] == "Ngapi?"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "Ngapi?"}', "line 1 has no 'answer'"),
        ("Ngapi?", "line 1 is not one of the data"),
        ('{"question": "Ngapi?", "answer": "nane"}', "line 1 is not one of the data"),
        ("[]", "line 1 is not one of the data"),
        ("\n", "has no question"),
    ],
)
def test_what_is_no_question_is_told(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "sw.jsonl").write_text(line)
    with pytest.raises(ValueError, match=reason):
        maths.questions(tmp_path, "sw", "chat")


def test_a_task_file_for_every_language() -> None:
    folder = Path(maths.__file__).parent
    assert {file.stem for file in folder.glob("mgsm_rev2/??.yaml")} == set(TONGUES)
    assert {file.stem for file in folder.glob("msvamp/??.yaml")} == set(TONGUES) - {"te"}
    for file in folder.glob("m*/??.yaml"):
        said = f"include: ../template\ntask: {file.parent.name}_{file.stem}\ndataset_kwargs:\n  language: {file.stem}\n"
        assert file.read_text() == said
        assert f"- {file.parent.name}_{file.stem}\n" in file.with_name("all.yaml").read_text()
