"""bench/evaluate.py: lm-eval asks the demo's server, and what is wrong is told before it does.

`make eval-tools` installs lm-eval; where it has not, what needs it is skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from asking import QUESTION
from serving import KEY, Server

sys.path.append(str(Path(__file__).parents[3] / "bench"))
from evaluate import names, rows

from shared.harness import ROOT, version
from shared.intervals import wilson
from shared.report import written

tools = pytest.mark.skipif(version() is None, reason="`make eval-tools` has not installed lm-eval")

QUESTIONS = [(QUESTION, "8"), ("Ali ana picha 9. Ali anauza picha 6. Sasa Ali ana picha ngapi?", "3")]


def evaluate(url: str, data: Path, models: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        ROOT / "bench/evaluate.py",
        "--url",
        f"{url}/v1",
        "--data",
        data,
        "--models",
        models,
        *options,
    ]
    environment = {**os.environ, "OPENAI_API_KEY": KEY, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's own questions, in the form of MGSM-Rev2's; it knows no others."""
    folder = tmp_path_factory.mktemp("questions")
    lines = [json.dumps({"id": at, "question": q, "answer": a}) for at, (q, a) in enumerate(QUESTIONS, 1)]
    (folder / "sw.jsonl").write_text("\n".join(lines))
    return folder


def table(file: Path) -> tuple[set[str], dict[tuple[str, str], float]]:
    """The names of the facts, and the numbers by row and column."""
    facts, numbers = written(file)
    return set(facts), {(each["row"], each["column"]): float(each["value"]) for each in numbers}


@tools
def test_models_side_by_side(demo: Server, data: Path, tmp_path: Path) -> None:
    options = "--languages", "sw", "--prompt", "bare", "--max-tokens", "8"
    kept = "--output", str(tmp_path / "answers"), "--csv", str(tmp_path / "out.csv")
    done = evaluate(demo.url, data, "base,math+swahili", *options, *kept)
    assert done.returncode == 0, done.stderr
    facts, found = table(tmp_path / "out.csv")
    assert {"commit", "command", "harness", "questions", "versions"} <= facts
    assert found["sw base", "right"] == 0 and found["sw math+swahili", "right"] == 100
    assert found["sw math+swahili", "less base"] == 100
    assert found["sw math+swahili", "right, low"] == pytest.approx(34.24, abs=0.01)
    answers = (tmp_path / "answers/2-math+swahili/answers.jsonl").read_text().splitlines()
    assert [json.loads(answer)["resps"] for answer in answers] == [[["8"]], [["3"]]]


@tools
def test_texts_to_go_on(demo: Server, data: Path, tmp_path: Path) -> None:
    options = "--languages", "sw", "--prompt", "text", "--max-tokens", "8", "--limit", "1"
    done = evaluate(demo.url, data, "math+swahili", *options, "--csv", str(tmp_path / "out.csv"))
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "out.csv")[1]["sw math+swahili", "questions"] == 1


@tools
def test_a_name_that_is_not_there_is_told_in_the_server_s_words(demo: Server, data: Path) -> None:
    done = evaluate(demo.url, data, "base,math+swahli", "--languages", "sw", "--prompt", "bare")
    assert done.returncode == 1 and done.stdout == ""
    assert "math+swahli" in done.stderr and "Did you mean 'math+swahili'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "environment", "reason"),
    [
        (("--languages", "sw"), {"EVAL_VENV": "nowhere"}, "`make eval-tools` installs it"),
        pytest.param(("--languages", "xx"), {}, "mgsm_rev2 has no 'xx'; it has bn, de, en", marks=tools),
        pytest.param(("--languages", "te", "--benchmark", "msvamp"), {}, "msvamp has no 'te'", marks=tools),
        pytest.param(("--languages", "bn"), {}, "neither bn.jsonl nor test_Bengali.json", marks=tools),
        pytest.param(("--languages", "sw", "--output", "."), {}, "name a new directory", marks=tools),
        pytest.param(("--languages", "sw", "--csv", "nowhere/out.csv"), {}, "nowhere is no directory", marks=tools),
        pytest.param(("--languages", "sw"), {}, "no answer from http://127.0.0.1:9/v1", marks=tools),
        (("--languages", "sw,sw"), {}, "name each once"),
        (("--languages", "sw", "--limit", "0"), {}, "'0' is not a number from 1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    data: Path, options: tuple[str, ...], environment: dict[str, str], reason: str
) -> None:
    done = evaluate("http://127.0.0.1:9", data, "base", *options, **environment)
    assert done.returncode != 0 and done.stdout == ""
    assert reason in done.stderr.splitlines()[-1]


def test_names_of_models() -> None:
    assert names("base, math+sw@bottom=6,top=2,math") == ["base", "math+sw@bottom=6,top=2", "math"]


def test_wilson() -> None:
    # Newcombe 1998, table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(29, 29)[1] == 1


def test_rows_compare_the_same_questions() -> None:
    ids = range(40)
    first = {(of, at): (float(at % 2), 0.0) for of in ("sw", "bn") for at in ids}
    other = {(of, at): (float(at % 2 or at % 4 == 0), 0.5) for of in ("bn", "sw") for at in reversed(ids)}
    sw, sw_other, *_, every, every_other = rows({"base": first, "math": other}, ["sw", "bn"])
    assert sw[:4] == ["sw", "base", 40, 50.0] and sw[6:] == [None, None, None, 0.0]
    assert sw_other[3] == 75.0 and sw_other[6] == 25.0 and sw_other[9] == 50.0
    low, high = sw_other[7:9]
    assert isinstance(low, float) and isinstance(high, float) and 10 <= low < 15 and 35 <= high <= 40
    assert every[:3] == ["all", "base", 80] and every_other[6] == 25.0
    assert every_other[4:9] == sw_other[4:9], "translations of a question count once"
