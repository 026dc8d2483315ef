"""inspect --plot: a picture appears, and says what the report says."""

import subprocess
import sys

import pytest
import torch
from tiny import make_tensors, write_checkpoint
from typer.testing import CliRunner

from layerloom.composer import ComposeError, draw, inspect
from layerloom.composer.tools.picture import grid, modules_of
from layerloom.server.commands.app import app

PNG = b"\x89PNG\r\n\x1a\n"


def test_inspect_draws_a_family_and_an_archive(root):
    for path, out in ((root, root / "family.png"), (root / "math.safetensors", root / "math.svg")):
        words = ["extract", root / "base", root / "math", "-o", root / "math.safetensors"]
        if not words[-1].exists():
            assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
        result = CliRunner().invoke(app, ["inspect", str(path), "--plot", str(out)])
        assert result.exit_code == 0, result.output
    assert (root / "family.png").read_bytes().startswith(PNG)
    assert "<svg" in (root / "math.svg").read_text()


def test_the_grid_is_the_report(root):
    tensors = make_tensors(0)
    tensors["model.layers.3.mlp.up_proj.weight"] += 1
    tensors["model.layers.5.mlp.up_proj.weight"][0, 0] = torch.nan
    write_checkpoint(root / "math", tensors)
    reports = inspect(root)
    modules = modules_of(reports)
    assert modules == ["self_attn.q_proj", "mlp.up_proj", "input_layernorm", "self_attn.q_norm"]
    values = grid(reports[0], modules, reports[0].depth)
    changed = {(y, x) for y, row in enumerate(values) for x, value in enumerate(row) if value}
    assert changed == {(1, 3), (1, 5)}
    assert values[1][3] == next(row.change for row in reports[0].rows if row.layer == 3)
    assert values[1][5] != values[1][5]
    draw(reports, root / "a.png", (2, 2))


def test_nothing_to_draw_and_nowhere_to_draw(root):
    write_checkpoint(root / "math", make_tensors(0))
    reports = inspect(root)
    with pytest.raises(ComposeError, match="nothing to draw"):
        draw(reports[:1], root / "a.png")
    for out, reason in (("none/a.png", "No such file"), ("a.nonsense", "is not supported")):
        with pytest.raises(ComposeError, match=rf"{out}: cannot be written: .*{reason}"):
            draw(reports[1:], root / out)


def test_matplotlib_is_imported_only_when_asked_for(root):
    script = (
        "import sys; from layerloom.composer import inspect; from layerloom.server.commands import app\n"
        f"inspect({str(root)!r}); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0
