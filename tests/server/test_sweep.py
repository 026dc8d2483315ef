"""`layerloom sweep` on the demo: what it finds, that it goes on, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from layerloom.composer import Family
from layerloom.composer.family.recipe import TENTHS
from layerloom.server.sweep.questions import is_right
from layerloom.server.sweep.recipes import grid, numbers, tenths
from layerloom.server.sweep.search import Search

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


def sweep(
    data: Path, output: Path, *options: str, family: Path = DEMO, **environment: str
) -> subprocess.CompletedProcess[str]:
    words = ["--task", "math", "--language", "sw", "--data", str(data), "-o", str(output), *options]
    env = {**os.environ, **environment}
    return subprocess.run([COMMAND, "sweep", family, *words], capture_output=True, text=True, env=env)


def beside_demo(folder: Path, compositions: str = "", recipe: str = "") -> Path:
    """The demo's family with other compositions, or another recipe."""
    family = (DEMO / "family.yaml").read_text().partition("compositions:")[0]
    for name in ("base", "math.safetensors", "swahili.safetensors", "bengali.safetensors"):
        (folder / name).symlink_to(DEMO / name)
    family = family.partition("recipe:")[0] + recipe if recipe else family
    (folder / "family.yaml").write_text(family + compositions)
    return folder


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
    loaded = Family.load(beside_demo(tmp_path, (first[0] / "best.yaml").read_text()))
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


def test_a_search_tells_what_a_grid_has_asked(first: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path) -> None:
    kept = (first[0] / "scores.jsonl").read_text()
    (tmp_path / "scores.jsonl").write_text(kept)
    options = "--bottom", "1..2", "--top", "2", "--transition", "0,1", "--score", "exact,choice,logprob"
    result = found(sweep(data, tmp_path, *options, "--search", "cma", "--trials", "20", "--json"))
    assert result == {**first[1], "trials": 20}
    assert (tmp_path / "scores.jsonl").read_text() == kept


def test_layers_are_searched_from_the_familys_recipe_on(data: Path, tmp_path: Path) -> None:
    family = beside_demo(tmp_path, recipe="recipe: {bottom: 1, top: 1, transition: 2}\n")
    options = "--search", "tpe", "--per-layer", "--step", "0.5", "--trials", "40", "--score", "logprob", "--json"
    result = found(sweep(data, tmp_path / "sweep", *options, family=family))
    scores = {row["recipe"]: row["logprob"] for row in result["results"]}
    own = scores["math+swahili@layers=x550055x"]
    assert own < -1 and result["results"][0]["logprob"] > own + 0.5
    assert len(scores) == result["recipes"] > 30 and result["trials"] == 40
    assert (tmp_path / "sweep" / "grid.png").read_bytes()[:4] == b"\x89PNG"

    kept = (tmp_path / "sweep" / "scores.jsonl").read_text()
    assert found(sweep(data, tmp_path / "sweep", *options, family=family)) == result
    assert (tmp_path / "sweep" / "scores.jsonl").read_text() == kept

    pasted = tmp_path / "pasted"
    pasted.mkdir()
    loaded = Family.load(beside_demo(pasted, (tmp_path / "sweep" / "best.yaml").read_text()))
    assert loaded.plan("math-swahili").digest == Family.load(DEMO).plan(result["best"]).digest


@pytest.mark.parametrize("sampler", ["tpe", "cma", "nsga2"])
def test_a_search_comes_closer_and_is_the_same_again(sampler: str) -> None:
    family = Family.load(DEMO)
    wanted = "xx862014"

    def distance(name: str) -> float:
        layers = name.partition("layers=")[2]
        return sum(
            (TENTHS.index(ours) - TENTHS.index(theirs)) ** 2 for ours, theirs in zip(layers, wanted, strict=True)
        )

    def searched(seed: int, trials: int) -> list[str]:
        search = Search(family, "math+swahili", {"layers": tenths(2)}, sampler, seed, ["logprob"])
        proposed: list[str] = []
        while len(proposed) < trials:
            names = search.propose(trials - len(proposed))
            search.tell({name: {"logprob": -distance(name)} for name in names})
            proposed += names
        return proposed

    proposed = searched(1, 80)
    # One that is to go on for longer proposes the same until then.
    assert proposed[:30] == searched(1, 30) != searched(2, 30)
    early, late = (fmean(map(distance, part)) for part in (proposed[1:31], proposed[-30:]))
    assert late < 0.7 * early


def test_a_search_stays_within_its_ranges_and_the_model() -> None:
    family = Family.load(DEMO)
    ranges = {"bottom": [2, 4, 40], "top": [0, 3, 5], "transition": [0, 1], "stem": ["task", "base"]}
    search = Search(family, "math+swahili", ranges, "tpe", 0, ["logprob"])
    proposed: list[str] = []
    while len(proposed) < 60:
        names = search.propose(60 - len(proposed))
        search.tell({name: {"logprob": 0.0} for name in names})
        proposed += names
    assert set(proposed) <= set(grid(family, "math+swahili", ranges)) and len(set(proposed)) > 6


def test_a_search_without_optuna_says_what_to_install(data: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['optuna'] = None\n")
    done = sweep(data, tmp_path, "--search", "tpe", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr == "error: --search needs optuna: pip install 'layerloom[search]'\n"


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
        (["--search", "gp"], "'gp' is not one of 'tpe', 'cma', 'random', 'nsga2'"),
        (["--search", "tpe", "--bottom", "9"], "none fits the model: zones overlap"),
        (["--keep", "2"], "--keep: says how many of a --screen N"),
        (["--per-layer"], "give --search tpe, cma, random or nsga2"),
        (["--search", "tpe", "--per-layer", "--step", "0.3"], "--step 0.3: is one of 0.1, 0.2, 0.5, 1"),
    ],
)
def test_what_cannot_be_swept(data: Path, tmp_path: Path, options: list[str], message: str) -> None:
    done = sweep(data, tmp_path, *options)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr


def test_ranges_and_grids() -> None:
    assert numbers("top", "0..2,5,4..5") == [0, 1, 2, 4, 5]
    family = Family.load(DEMO)
    names = grid(family, "sw+math", {"bottom": [0, 4, 8], "top": [0, 4], "transition": [0]})
    assert names == [f"math+swahili@bottom={b},top={t},transition=0" for b, t in ((0, 0), (0, 4), (4, 0), (4, 4))]
    # Those of zones that are larger than the model are not even looked at.
    every, some = (dict.fromkeys(("bottom", "top", "transition"), numbers("top", text)) for text in ("0..999", "0..8"))
    assert grid(family, "math+swahili", every) == grid(family, "math+swahili", some)
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
