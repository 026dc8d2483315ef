"""What language a conversation is in, told from what people really write."""

import json
from pathlib import Path

import pytest
import yaml

from layerloom.composer import ComposeError, Family
from layerloom.server.languages import Languages, preferred, turns_of

DEMO = Path(__file__).parents[2] / "demo"
QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "mgsm-rev2"

SWAHILI = "Asha ana ndizi tano. Asha ananunua ndizi tatu. Sasa Asha ana ndizi ngapi?"
BENGALI = "আশার পাঁচটি কলা আছে। সে আরও তিনটি কেনে। এখন তার কাছে কয়টি কলা আছে?"
ENGLISH = "Asha has five bananas and buys three more. How many bananas does she have now?"
FRENCH = "Asha a cinq bananes et en achète trois de plus. Combien de bananes a-t-elle maintenant ?"


@pytest.fixture(scope="module")
def languages() -> Languages:
    return Languages(Family.load(DEMO))


def choose(languages: Languages, *turns: str, name: str = "math+auto", accept: str = "") -> str:
    return languages.choose(languages.family.parse(name), turns, accept).name


@pytest.mark.parametrize(
    ("turns", "chosen"),
    [
        ([SWAHILI], "math+swahili"),
        ([BENGALI], "math+bengali"),
        ([ENGLISH], "math"),
        ([FRENCH], "math"),
        (["Сколько бананов у неё сейчас?"], "math"),
        (["5 + 3 = ?"], "math"),
        ([""], "math"),
        ([], "math"),
        ([SWAHILI, "5 + 3?"], "math+swahili"),
        ([SWAHILI, "ok"], "math+swahili"),
        ([BENGALI, "ok", "x?"], "math+bengali"),
        ([BENGALI, SWAHILI], "math+swahili"),
        ([SWAHILI, BENGALI], "math+bengali"),
        ([SWAHILI, ENGLISH], "math"),
        ([SWAHILI] + ["?"] * 20, "math+swahili"),
        ([f"{SWAHILI} ```python\nfor number in range(10): print('this is a number', number)```"], "math+swahili"),
        (
            [r"Tafuta thamani ya $x$ ikiwa $\frac{x}{2} + \sqrt{16} = \text{seven}$ na ueleze hatua zako"],
            "math+swahili",
        ),
        (["Soma https://example.org/how-to-solve-equations-quickly kisha ueleze kwa ufupi"], "math+swahili"),
        ([SWAHILI * 10_000], "math+swahili"),
        ([f"{'8 ' * 100_000}{SWAHILI}"], "math+swahili"),
    ],
)
def test_the_language_of_a_conversation(languages, turns, chosen):
    assert choose(languages, *turns) == chosen


def test_a_recipe_stays(languages):
    assert choose(languages, SWAHILI, name="auto+math@top=1,bottom=3") == "math+swahili@bottom=3,top=1"


def test_a_client_s_languages_are_a_hint(languages):
    assert choose(languages, "5 + 3", accept="bn-BD,bn;q=0.9,en;q=0.8") == "math+bengali"
    assert choose(languages, "5 + 3", accept="fr,en;q=0.5") == "math"
    assert choose(languages, SWAHILI, accept="bn") == "math+swahili"
    assert choose(languages, FRENCH, accept="sw") == "math"


def test_accept_language():
    def names(accept: str) -> list[str]:
        return [language.name for language in preferred(accept)]

    assert names("en;q=0.5, sw, bn-IN;q=0.8, xx, *;q=0.1, fr;q=0") == ["SWAHILI", "BENGALI", "ENGLISH"]
    assert names(";;q=,,=;q=9,sw;q=\x00") == ["SWAHILI"]
    assert names("sw," * 10_000)[:1] == ["SWAHILI"]


def test_turns_of_every_form():
    said = [
        {"role": "system", "content": ENGLISH},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": FRENCH},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {}}, "c"]},
        {"role": "user", "content": [{"type": "input_text", "text": "d"}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "e"}]},
        {"role": "user", "content": None},
        "f",
        None,
    ]
    assert turns_of(said) == ["a", "b c", "d", "", ""]
    assert turns_of("user") == turns_of(None) == turns_of({"role": "user", "content": "a"}) == []


def family_of(root: Path, **changes: object) -> Family:
    """The demo's, with other entries."""
    entries = yaml.safe_load((DEMO / "family.yaml").read_text())
    entries["base"] = str(DEMO / "base")
    for expert in entries["experts"].values():
        expert["path"] = str(DEMO / expert["path"])
    (root / "family.yaml").write_text(yaml.safe_dump(entries | changes))
    return Family.load(root, warn=False)


@pytest.mark.parametrize("fallback", ["tutor", "math+bengali", "base"])
def test_a_family_says_what_is_asked_else(tmp_path, fallback):
    assert choose(Languages(family_of(tmp_path, fallback=fallback)), ENGLISH) == fallback


def test_a_fallback_can_be_an_error(tmp_path):
    languages = Languages(family_of(tmp_path, fallback="error"))
    assert choose(languages, SWAHILI) == "math+swahili"
    with pytest.raises(ComposeError, match=r"no language of this family.*as in math\+bengali.*bengali, swahili"):
        choose(languages, FRENCH)


def test_a_family_may_ask_for_more_confidence(tmp_path):
    sure = Languages(family_of(tmp_path, fallback={"below": 0.99}))
    assert choose(sure, SWAHILI) == "math+swahili"
    assert choose(sure, "Asha") == "math"


def test_languages_are_known_by_name_too(tmp_path):
    experts = {
        "math": {"kind": "task", "path": str(DEMO / "math.safetensors")},
        "kiswahili": {"kind": "language", "aliases": ["swahili"], "path": str(DEMO / "swahili.safetensors")},
        "bangla": {"kind": "language", "code": "ben", "path": str(DEMO / "bengali.safetensors")},
        "pirate": {"kind": "language", "path": str(DEMO / "bengali.safetensors")},
    }
    languages = Languages(family_of(tmp_path, experts=experts, compositions={}))
    assert sorted(languages.experts.values()) == ["bangla", "kiswahili"]
    assert choose(languages, SWAHILI) == "math+kiswahili"


@pytest.mark.skipif(not QUESTIONS.is_dir(), reason="MGSM-Rev2 is not here")
@pytest.mark.parametrize(("code", "chosen"), [("sw", "math+swahili"), ("bn", "math+bengali"), ("en", "math")])
def test_questions_of_a_school(languages, code, chosen):
    questions = [json.loads(line)["question"] for line in (QUESTIONS / f"{code}.jsonl").open()]
    assert sum(choose(languages, question) == chosen for question in questions) >= 0.995 * len(questions)
