"""`layerloom sweep` on the demo: what it finds, that it goes on, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layerloom.composer import ComposeError, Family
from layerloom.server.sweep.questions import is_right, read_questions
from layerloom.server.sweep.recipes import grid, numbers

DEMO = Path(__file__).parents[2] / "demo"
COMMAND = Path(sys.executable).with_name("layerloom")

# As bench/shared/demo_data.py writes them, of combinations that the demo was not trained on.
QUESTIONS = [
    ("Ali ana pete 6. Ali anauza pete 6. Sasa Ali ana pete ngapi?", "0"),
    ("Ali ana picha 9. Ali anauza picha 6. Sasa Ali ana picha ngapi?", "3"),
    ("Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?", "8"),
    ("Asha ana ndizi 7. Asha ananunua ndizi 2. Sasa Asha ana ndizi ngapi?", "9"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "questions.jsonl"
    lines = [{"question": q, "answer": a, "choices": [str(n) for n in range(10)]} for q, a in QUESTIONS]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def sweep(data: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["--task", "math", "--language", "sw", "--data", str(data), "-o", str(output), *options]
    return subprocess.run([COMMAND, "sweep", DEMO, *words], capture_output=True, text=True)


def found(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("sweep")
    grid = "--bottom", "1..2", "--top", "2", "--transition", "0,1", "--score", "exact,choice,logprob"
    return output, found(sweep(data, output, *grid, "--json"))


def test_the_best_recipe_is_the_one_that_the_demo_was_made_with(first: tuple[Path, dict[str, Any]]) -> None:
    output, result = first
    assert (result["recipes"], result["questions"]) == (4, 4)
    assert result["best"] == "math+swahili@bottom=2,top=2,transition=0"
    best = result["results"][0]
    assert (best["exact"], best["choice"]) == (1.0, 1.0) and -0.5 < best["logprob"] < 0
    assert best["exact"] > result["results"][-1]["exact"]
    assert (output / "grid.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_pasted_is_a_composition(first: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    said = (first[0] / "best.yaml").read_text()
    family = (DEMO / "family.yaml").read_text().partition("compositions:")[0] + said
    for name in ("base", "math.safetensors", "swahili.safetensors", "bengali.safetensors"):
        (tmp_path / name).symlink_to(DEMO / name)
    (tmp_path / "family.yaml").write_text(family)
    loaded = Family.load(tmp_path)
    assert (
        loaded.plan("math-swahili").digest == Family.load(DEMO).plan("math+swahili@bottom=2,top=2,transition=0").digest
    )


def test_a_sweep_goes_on_with_what_it_has(first: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    kept = (first[0] / "scores.jsonl").read_text().splitlines()
    stopped = tmp_path / "scores.jsonl"
    # Cut in the middle of a line, as a kill may leave it; one score is not what was measured, to know it again.
    marked = kept[1].replace('"exact": 1.0', '"exact": 0.0').replace('"exact": 0.0', '"exact": 0.25')
    stopped.write_text("\n".join([kept[0], marked, *kept[2:6], kept[6][:20]]))
    grid = "--bottom", "1..2", "--top", "2", "--transition", "0,1", "--score", "exact,choice,logprob"
    again = found(sweep(data, tmp_path, *grid, "--json"))
    name = json.loads(kept[1])["recipe"]
    before, after = ({row["recipe"]: row for row in result["results"]} for result in (first[1], again))
    assert {key: row for key, row in after.items() if key != name} == {k: v for k, v in before.items() if k != name}
    assert abs(after[name]["exact"] - before[name]["exact"]) in (0.0625, 0.1875)
    assert len(stopped.read_text().splitlines()) == len(kept)


def test_a_screen_asks_the_best_everything(data: Path, tmp_path: Path) -> None:
    grid = "--bottom", "1..2", "--top", "1..2", "--transition", "0", "--score", "logprob"
    result = found(sweep(data, tmp_path, *grid, "--screen", "2", "--keep", "1", "--json"))
    assert [row["recipe"] for row in result["results"]] == ["math+swahili@bottom=2,top=2,transition=0"]
    asked = [json.loads(line)["recipe"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()[1:]]
    assert sorted(map(asked.count, set(asked))) == [2, 2, 2, 4]


def test_results_of_other_questions_are_not_mixed(first: tuple[Path, dict[str, Any]], data: Path) -> None:
    done = sweep(data, first[0], "--bottom", "1", "--top", "2", "--limit", "2")
    assert done.returncode == 2 and "give another --output" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bottom", "8..2"], "--bottom 8..2: goes up"),
        (["--top", "a"], "--top a: is no range"),
        (["--bottom", "9"], "no recipe of the grid fits the model"),
        (["--score", "bleu"], "--score bleu: there is no 'bleu'; valid: exact, choice, logprob"),
        (["--template", "x"], "has no {question} in it"),
        (["--stem", "tree"], "stem is one of"),
    ],
)
def test_what_cannot_be_swept(data: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = sweep(data, tmp_path, *options)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no question"),
        ("{", "line 1: is no JSON"),
        ('{"question": "a"}', "line 1: answer: Field required"),
        ('\n{"question": "a", "answer": 1}\n{"answer": "b"}', "line 3: .*either question or messages"),
        ('{"question": "a", "answer": "b", "choices": ["c"]}', "do not hold the answer"),
    ],
)
def test_files_that_hold_no_questions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ComposeError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_ranges_and_grids() -> None:
    assert numbers("top", "0..2,5,4..5") == [0, 1, 2, 4, 5]
    family = Family.load(DEMO)
    names = grid(family, "sw+math", {"bottom": [0, 4, 8], "top": [0, 4], "transition": [0]})
    assert names == [f"math+swahili@bottom={b},top={t},transition=0" for b, t in ((0, 0), (0, 4), (4, 0), (4, 4))]
    # The same weights under another name are asked once.
    assert len(grid(family, "math+swahili", {"bottom": [2], "top": [2], "weight": ["0.5", "0.25"]})) == 1


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("8", "8", True),
        ("8.0", "8", True),
        ("It is 1,008.", "1008", True),
        ("8 and then 9", "8", False),
        ("", "8", False),
        ("Asha", "Asha", True),
        (" Asha\n", "Asha", True),
        ("Asha 8", "Asha", False),
    ],
)
def test_what_is_right(text: str, answer: str, right: bool) -> None:
    assert is_right(text, answer) is right
