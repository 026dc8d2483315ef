"""The layerloom command, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engines import ENVIRONMENT
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from layerloom.server.commands.app import app

DEMO = Path(__file__).resolve().parents[3] / "demo"
QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?\n"


def layerloom(*arguments: object):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def test_plan():
    result = layerloom("plan", DEMO, "kiswahili+math")
    assert result.exit_code == 0
    for line in ("math+swahili", "0-1    swahili", "2-5    math", "6-7    swahili", "stem   swahili"):
        assert line in result.stdout


def test_merge_and_verify(tmp_path):
    out = tmp_path / "merged"
    assert layerloom("merge", DEMO, "math+sw", "-o", out).exit_code == 0
    result = layerloom("verify", DEMO, "math+swahili", "--against", out)
    assert (result.exit_code, result.stdout.strip()) == (0, "equal, bit by bit")

    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    result = layerloom("verify", DEMO, "math+swahili", "--against", out)
    assert result.exit_code == 1
    assert "1 tensors differ" in result.stdout and "model.norm.weight" in result.stdout


def test_merge_does_not_overwrite(tmp_path):
    (tmp_path / "precious").write_text("x")
    result = layerloom("merge", DEMO, "math", "-o", tmp_path)
    assert result.exit_code == 2
    assert "not an empty directory" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("plan", DEMO, "math+klingon"), "there is no model 'math+klingon'"),
        (("plan", DEMO, "math+swahili@botom=2"), "bottom"),
        (("plan", DEMO / "nowhere", "math"), "nowhere"),
        (("generate", DEMO, "--model", "maths", "--prompt", "x"), "Did you mean 'math'?"),
        (("serve", DEMO / "base"), "family.yaml"),
        (("serve", DEMO, "--quantization", "fp8"), "layerloom sets quantization itself"),
        (("serve", DEMO, "--max-model-lenn", "9"), "--max-model-lenn (did you mean --max-model-len?)"),
        (("serve", DEMO, "--bank-memry", "1G"), "did you mean --bank-memory?"),
        (("serve", DEMO, "--max-num-seqs", "many"), "argument --max-num-seqs: invalid int value: 'many'"),
    ],
)
def test_errors_say_what_to_do(arguments, message):
    result = layerloom(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_generate():
    command = [str(Path(sys.executable).with_name("layerloom")), "generate", str(DEMO), "--model", "math+sw", "--json"]
    done = subprocess.run(
        [*command, "--prompt", QUESTION, "--prompt", QUESTION.replace("5", "4"), "--max-tokens", "4"],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["model"], row["text"]) for row in rows] == [("math+swahili", "8"), ("math+swahili", "7")]
    assert all(isinstance(token, int) for row in rows for token in row["token_ids"])
