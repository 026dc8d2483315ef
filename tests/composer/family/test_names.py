import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerloom.composer import ComposeError, Composition, UnknownName
from layerloom.composer.family.names import OPTIONS, Names

TASKS, LANGUAGES = ("math", "code"), {"swahili": ("sw", "kiswahili"), "bengali": ("bn",)}
TUTOR = Composition("tutor", "math", "swahili", (("bottom", "3"),), "tutor")
NAMES = Names(
    {**dict.fromkeys(TASKS, "task"), **dict.fromkeys(LANGUAGES, "language")},
    {alias: language for language, aliases in LANGUAGES.items() for alias in aliases},
    {"tutor": TUTOR},
)

counts = st.integers(0, 999).map(str)
values = {
    "preset": st.sampled_from(["paper", "unreasonable", "lighton"]),
    "bottom": counts,
    "top": counts,
    "transition": counts,
    "weight": st.integers(0, 10**6).map(lambda n: "1" if n == 10**6 else f"0.{n:06d}".rstrip("0").rstrip(".")),
    "stem": st.sampled_from(["language", "task", "base", "average"]),
    "layers": st.text("0123456789x", min_size=1, max_size=100),
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, Composition]:
    """A way to write a pair, and what it means."""
    task, language = draw(st.sampled_from(TASKS)), draw(st.sampled_from(sorted(LANGUAGES)))
    parts = draw(st.permutations([task, draw(st.sampled_from([language, *LANGUAGES[language]]))]))
    keys = draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True))
    options = {key: draw(values[key]) for key in keys}
    written = ",".join(f"{key}={value}" for key, value in options.items())
    ordered = tuple((key, options[key]) for key in OPTIONS if key in options)
    canonical = ",".join(f"{key}={value}" for key, value in ordered)
    at = "@" if options else ""
    name = f"{task}+{language}{at}{canonical}"
    return f"{'+'.join(parts)}{at}{written}", Composition(name, task, language, ordered)


@given(pairs())
def test_every_spelling_has_one_canonical_name(case):
    text, meant = case
    assert NAMES.parse(text) == meant
    assert NAMES.parse(meant.name) == meant


@given(st.one_of(st.text(), st.text("abmth swili+@=,.0159_-\n", max_size=40), pairs().map(lambda case: case[0] + " ")))
def test_nothing_else_gets_through(text):
    try:
        composition = NAMES.parse(text)
    except ComposeError as error:
        assert str(error).isprintable() and len(str(error)) < 600
    else:
        assert NAMES.parse(composition.name) == composition
        assert len(composition.name) <= 256 and composition.name.isascii()


@given(pairs(), st.data())
def test_one_changed_character_never_means_something_unwritten(case, data):
    text, _ = case
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    try:
        composition = NAMES.parse(changed)
    except ComposeError:
        return
    written = "".join(changed.partition("@")[2].split()).lower()
    assert sorted(f"{key}={value}" for key, value in composition.options) == sorted(filter(None, written.split(",")))


@pytest.mark.parametrize("text", ["base", "math", "swahili", "tutor"])
def test_single_names(text):
    assert NAMES.parse(text).name == text


@pytest.mark.parametrize(
    "alias, name", [("sw", "swahili"), ("math+kiswahili", "math+swahili"), ("bn+code", "code+bengali")]
)
def test_aliases(alias, name):
    assert NAMES.parse(alias).name == name


@pytest.mark.parametrize(
    "text, name",
    [
        ("Math", "math"),
        ("Math+Swahili", "math+swahili"),
        ("math + SW", "math+swahili"),
        (" math\n", "math"),
        ("base:math+swahili", "math+swahili"),
        ("Base: Tutor", "tutor"),
        ("base:base", "base"),
        ("Math+Swahili @ Bottom = 3, Top=1", "math+swahili@bottom=3,top=1"),
        ("Auto + Math", "math+auto"),
        ("auto+math@top=1", "math+auto@top=1"),
    ],
)
def test_what_makes_no_difference(text, name):
    assert NAMES.parse(text).name == NAMES.parse(name).name == name


def test_auto_becomes_a_composition_in_a_language():
    auto = NAMES.parse("math+auto@top=1,bottom=3")
    assert auto.is_auto and NAMES.parse(auto.speaking("bengali")).name == "math+bengali@bottom=3,top=1"
    assert not NAMES.parse("math+bengali").is_auto


@pytest.mark.parametrize(
    "text, nearest",
    [
        ("maths", "math"),
        ("math+swahilli", "math+swahili"),
        ("swahilli+math@bottom=2", "math+swahili"),
        ("math%2Bswahili", "math+swahili"),
        ("math%20%2B%20swahili", "math+swahili"),
        ("math swahili", "math+swahili"),
        ("math+aut", "math+auto"),
        ("ma th", "math"),
        ("tuter", "tutor"),
        ("../math", None),
        ("/etc/passwd", None),
        ("", None),
        ("+", None),
        ("math+", None),
        ("math\x00", None),
        ("x" * 10_000, None),
        ("math+swahili" * 1000, None),
        ("base+swahili", None),
        ("tutor+swahili", None),
    ],
)
def test_unknown_names(text, nearest):
    with pytest.raises(UnknownName) as caught:
        NAMES.parse(text)
    error = caught.value
    assert (error.name, error.valid) == (text, NAMES.all())
    assert nearest is None or error.nearest == nearest
    assert str(error).isprintable() and len(str(error)) < 300
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.valid, copy.nearest) == (str(error), error.valid, error.nearest)


@pytest.mark.parametrize(
    "text, message",
    [
        ("math+code", "math and code are both task experts"),
        ("swahili+bengali", "swahili and bengali are both language experts"),
        ("math+math", "math twice"),
        ("swahili+sw", "swahili twice"),
        ("math+swahili+bengali", "swahili and bengali are both language experts"),
        ("math@bottom=1", "options belong to a task\\+language pair"),
        ("base@bottom=1", "options belong to"),
        ("tutor@bottom=1", "options belong to"),
        ("math+swahili@", "unknown option ''"),
        ("math+swahili@bottom=1,", "unknown option ''"),
        ("math+swahili@botom=1", "Did you mean 'bottom'"),
        ("math+swahili@stem=tsk", "Did you mean 'task'"),
        ("math+swahili@preset=papr", "Did you mean 'paper'"),
        ("math+swahili@bottom", "bottom is a whole number"),
        ("math+swahili@bottom=06", "not '06'"),
        ("math+swahili@bottom=-1", "not '-1'"),
        ("math+swahili@bottom=1000", "not '1000'"),
        ("math+swahili@bottom=٣", "bottom is a whole number"),
        ("math+swahili@bottom=1 2", "not '1 2'"),
        ("auto", "auto goes with a task, as in math\\+auto"),
        ("swahili+auto", "both language experts"),
        ("math+swahili@weight=1.5", "weight is a decimal"),
        ("math+swahili@weight=0.50", "not '0.50'"),
        ("math+swahili@weight=nan", "not 'nan'"),
        ("math+swahili@layers=0.5", "tenths of language in each layer"),
        ("math+swahili@layers=", "tenths of language in each layer"),
        ("math+swahili@bottom=1,bottom=1", "bottom is given twice"),
        ("math+swahili@bottom=1,bottom=2", "bottom is given twice"),
        ("math+swahili@bottom=1@top=1", "not '1@top=1'"),
    ],
)
def test_known_words_wrongly_put_together(text, message):
    with pytest.raises(ComposeError, match=message) as caught:
        NAMES.parse(text)
    assert not isinstance(caught.value, UnknownName)


def test_options_need_permission():
    assert NAMES.parse("math+sw", allow_options=False).name == "math+swahili"
    with pytest.raises(ComposeError, match="--allow-recipes"):
        NAMES.parse("math+sw@bottom=1", allow_options=False)
