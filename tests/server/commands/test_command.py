"""The command as a whole: help at once, versions, completion, errors in a line, tables in which no name is broken."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import COMMAND
from terminal import CONTROL_C, ordinary, terminal
from typer.testing import CliRunner

from layerloom.composer import Family, merge
from layerloom.server.commands.app import app

DEMO = Path(__file__).resolve().parents[3] / "demo"
STAND_INS = Path(__file__).resolve().parents[1] / "stand_ins"
LONG = "a-language-with-a-name-of-46-letters-and-more_"


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command where nobody looks at a terminal."""
    command = [COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**ordinary(), **environment}, timeout=120)


def test_help_comes_at_once_and_fits_a_terminal() -> None:
    times = []
    for _ in range(3):
        began = time.monotonic()
        done = run("--help")
        times.append(time.monotonic() - began)
        assert done.returncode == 0
    assert min(times) < 1.0
    lines = done.stdout.splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    assert not any(line.endswith("...") and "COMMAND" not in line for line in lines)


def test_every_command_says_what_it_takes() -> None:
    commands = re.findall(r"^  ([a-z-]+)  +[A-Z]", run("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"serve", "chat", "doctor", "plan"} <= set(commands)
    for command in commands:
        done = run(command, "--help")
        assert done.returncode == 0 and "--help" in done.stdout, command
        # Each option says something.
        assert not re.search(r"^  --[a-z-]+( <[a-z ]+>)?$(?!\n {10})", done.stdout, re.MULTILINE), command


def test_versions() -> None:
    done = run("--version")
    assert re.fullmatch(r"layerloom \d\S+, vLLM \d\S+, torch \d\S+\n", done.stdout)


def completed(words: str) -> list[str]:
    shell = {"_LAYERLOOM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    return run(**shell).stdout.split()


def test_a_shell_completes_commands_and_names() -> None:
    assert completed("layerloom pl") == ["plan"]
    assert completed(f"layerloom plan {DEMO} math+") == ["math+swahili", "math+bengali", "math+auto"]
    assert completed(f"layerloom generate {DEMO} --model tu") == ["tutor"]
    assert completed(f"layerloom plan {DEMO}/none ma") == []


@pytest.mark.parametrize(
    "words, said",
    [
        (("plan", DEMO), "Missing argument 'NAME'"),
        (("pln", DEMO), "Did you mean 'plan'?"),
        (("plan", DEMO, "math", "--nonsense"), "No such option: --nonsense"),
        (("plan", DEMO / "none", "math"), "there is no such file or directory: FAMILY is family.yaml, or where it is"),
        (("plan", DEMO / "base", "math"), "has no family.yaml"),
        (("merge", DEMO, "math", "-o", "/dev/null/x"), "/dev/null/x: cannot be written"),
        (("chat",), "give a FAMILY, or the --url"),
        (("chat", "--url", "http://127.0.0.1:9"), "is `layerloom serve` running there?"),
        (("serve", DEMO, "--port", "99999"), "Invalid value for '--port'"),
    ],
)
def test_errors_say_what_is_wrong(words: tuple[object, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("before, after, debug", [(["--debug"], [], ""), ([], ["--debug"], ""), ([], [], "1")])
def test_where_an_error_comes_from(before: list[str], after: list[str], debug: str) -> None:
    done = run(*before, "plan", DEMO, "maths", *after, LAYERLOOM_DEBUG=debug)
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("error: there is no model 'maths'")
    assert done.returncode == 2


def test_a_reader_that_goes_and_a_disk_that_is_full() -> None:
    shell = f"{COMMAND} inspect {DEMO} --json | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=ordinary())
    assert done.stdout.startswith('[{"path"') and not done.stderr
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, "plan", DEMO, "math"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: [Errno 28] No space left on device: free some room, or write elsewhere\n"
    )


def test_an_interrupt() -> None:
    with terminal("inspect", DEMO, "--quality") as shown:
        shown.wait_for("reading", 60)
        shown.type(CONTROL_C)
        assert shown.wait(30) == 130
        assert shown.text.rstrip().endswith("stopped") and "Traceback" not in shown.text


@pytest.mark.parametrize(
    "path, said",
    [
        ("without_vllm", "error: vLLM is not installed. With a GPU: pip install 'vllm>="),
        ("old_vllm", "error: vLLM 0.20.0 is installed, and layerloom works with vLLM >="),
    ],
)
@pytest.mark.parametrize("words", [("serve", DEMO), ("generate", DEMO, "--model", "math", "--prompt", "x")])
def test_a_vllm_that_is_not_there_or_too_old(words: tuple[object, ...], path: str, said: str) -> None:
    done = run(*words, PYTHONPATH=str(STAND_INS / path))
    assert done.returncode == 2 and done.stderr.startswith(said), done.stderr


def test_what_is_not_served_takes_no_vllm() -> None:
    done = run("plan", DEMO, "math+swahili", PYTHONPATH=str(STAND_INS / "without_vllm"))
    assert done.returncode == 0 and "swahili" in done.stdout
    assert "vLLM -" in run("--version", PYTHONPATH=str(STAND_INS / "without_vllm")).stdout


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, with a name that is long."""
    root = tmp_path_factory.mktemp("long")
    said = yaml.safe_load((DEMO / "family.yaml").read_text())
    experts = {name: {**entry, "path": str(DEMO / entry["path"])} for name, entry in said["experts"].items()}
    experts[LONG] = experts.pop("swahili")
    said |= {"base": str(DEMO / "base"), "experts": experts, "compositions": {}}
    (root / "family.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    return root


@pytest.mark.parametrize("command", ["plan", "suggest"])
def test_no_name_is_broken(family: Path, command: str) -> None:
    pair = f"math+{LONG}"
    with terminal(command, family, pair) as shown:
        assert shown.wait(60) == 0
    piped = run(command, family, pair)
    for text in (shown.text, piped.stdout):
        assert pair in text
        assert text.replace(pair, "").count(LONG) >= 3
        assert LONG[:20] not in text.replace(LONG, "")
    layers = re.findall(r"^\d+(?:-\d+)? .*", piped.stdout, re.MULTILINE)
    assert all(LONG in line or "math" in line for line in layers)


def test_one_object_of_json(tmp_path: Path) -> None:
    def said(*words: object, status: int = 0) -> dict[str, Any]:
        result = CliRunner().invoke(app, [str(word) for word in (*words, "--json")])
        assert result.exit_code == status, result.output
        return dict(json.loads(result.stdout))

    plan = said("plan", DEMO, "math+sw")
    assert plan.keys() == {"name", "digest", "speaker", "residency", "layers", "stem"}
    assert plan["name"] == "math+swahili" and plan["layers"][0]["mlp"] == plan["stem"] == {"swahili": 1.0}
    suggested = said("suggest", DEMO, "math+sw")
    assert suggested["name"] == "math+swahili@bottom=2,top=2,transition=0" and len(suggested["task"]) == 8
    merge(Family.load(DEMO), "math", tmp_path / "math")
    assert said("verify", DEMO, "math", "--against", tmp_path / "math")["equal"] is True
    other = said("verify", DEMO, "swahili", "--against", tmp_path / "math", status=1)
    assert not other["equal"] and other["differences"][0].keys() == {"tensor", "reason", "count"}


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    with terminal("merge", DEMO, "math+swahili", "-o", tmp_path / "merged") as shown:
        assert shown.wait(60) == 0
    assert "merging" in shown.text and "wrote" in shown.text
    done = run("merge", DEMO, "math+swahili", "-o", tmp_path / "again")
    assert not done.stderr and done.stdout == f"wrote {tmp_path / 'again'}\n"
