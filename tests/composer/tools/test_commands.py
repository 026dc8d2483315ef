import json

import pytest
import torch
from tiny import make_tensors, write_checkpoint
from typer.testing import CliRunner

from layerloom.composer import FamilyError, inspect
from layerloom.server.commands.app import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    "options, codec",
    [
        ([], "exact"),
        (["--codec", "int4"], "int4"),
        (["--codec", "lowrank", "--rank", "2"], "lowrank"),
        (["--codec", "auto", "--error-bound", "0.9"], "sign"),
    ],
)
def test_extract_and_inspect(root, options, codec):
    out = root / "math.safetensors"
    result = run("extract", root / "base", root / "math", "-o", out, *options)
    assert result.exit_code == 0, result.output
    assert "wrote" in result.output and "35 tensors" in result.output
    result = run("inspect", out, "--json")
    (report,) = json.loads(result.output)
    assert (report["kind"], report["expert"]) == ("archive", "math")
    assert codec in {row["codec"] for row in report["rows"]}
    assert sum(row["bytes"] for row in report["rows"]) < out.stat().st_size
    assert "self_attn.q_proj" in run("inspect", out).output


def test_inspect_of_a_family(root):
    run("extract", root / "base", root / "swahili", "-o", root / "swahili.safetensors")
    text = (root / "family.yaml").read_text()
    (root / "family.yaml").write_text(text.replace("path: swahili", "path: swahili.safetensors"))
    reports = {report.expert: report for report in inspect(root)}
    assert {name: report.kind for name, report in reports.items()} == {
        "math": "checkpoint", "code": "checkpoint", "swahili": "archive", "bengali": "checkpoint",
    }  # fmt: skip
    for row in reports["math"].rows:
        assert row.bytes == row.plain and row.change > 0 and row.error == 0
    assert [row.layer for row in reports["math"].rows][:4] == [None, None, None, 0]
    assert run("inspect", root, "--json").exit_code == 0


def test_inspect_of_an_expert_outside_a_family(root):
    whole = {report.expert: report for report in inspect(root)}["math"]
    (alone,) = inspect(root / "math", base=root / "base")
    assert alone == whole
    result = run("inspect", root / "math", "--base", root / "base", "--json")
    assert [report["kind"] for report in json.loads(result.output)] == ["checkpoint"]
    run("extract", root / "base", root / "math", "-o", root / "math.safetensors")
    (archive,) = inspect(root / "math.safetensors", base=root / "base")
    assert [row.change for row in archive.rows] == [row.change for row in whole.rows]
    write_checkpoint(root / "wide", {**make_tensors(0), "model.norm.weight": torch.zeros(17)})
    with pytest.raises(FamilyError, match=r"model.norm.weight: shape \(17,\), the base's is \(16,\)"):
        inspect(root / "wide", base=root / "base")


@pytest.mark.parametrize(
    "words, message",
    [
        (["extract", "base", "math", "-o", "a.safetensors", "--codec", "int3"], "there is no codec 'int3'"),
        (["extract", "base", "math", "-o", "a.safetensors", "--codec", "auto"], "go together"),
        (["extract", "base", "math", "-o", "a.safetensors", "--error-bound", "0.1"], "go together"),
        (["extract", "base", "none", "-o", "a.safetensors"], "no such directory"),
        (["inspect", "math/model.safetensors"], "is no delta archive"),
        (["inspect", "none.safetensors"], "none.safetensors"),
        (["inspect", "math"], "has no family.yaml; to see what a checkpoint or adapter changes, give --base too"),
        (["inspect", "math", "--base", "none"], "no such directory"),
        (["inspect", ".", "--quality", "--base", "base"], "--quality is of a family"),
    ],
)
def test_errors_are_one_line(root, words, message, monkeypatch):
    monkeypatch.chdir(root)
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
