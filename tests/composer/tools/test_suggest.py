"""suggest: the split is where the two experts change."""

import pytest
import torch
import yaml
from tiny import DEPTH, make_tensors, write_checkpoint
from typer.testing import CliRunner

from layerloom.composer import ComposeError, Family, suggest
from layerloom.server.commands.app import app


def expert(root, name, amounts):
    """Writes an expert whose matrices in layer i are moved by amounts[i]."""
    tensors, generator = make_tensors(0), torch.Generator().manual_seed(len(name))
    for layer, amount in enumerate(amounts):
        for module in ("self_attn.q_proj", "mlp.up_proj"):
            tensor = tensors[f"model.layers.{layer}.{module}.weight"]
            noise = torch.randn(tensor.shape, generator=generator)
            tensor += (amount * noise * tensor.float().norm() / noise.norm()).to(tensor.dtype)
    write_checkpoint(root / name, tensors)


@pytest.mark.parametrize("bottom, top", [(1, 1), (2, 2), (3, 1), (1, 5)])
def test_experts_that_change_different_layers(root, bottom, top):
    middle = range(bottom, DEPTH - top)
    expert(root, "math", [0.1 * (i in middle) for i in range(DEPTH)])
    expert(root, "swahili", [0.02 * (i not in middle) for i in range(DEPTH)])
    found = suggest(Family.load(root), "sw+math")
    assert found.name == f"math+swahili@bottom={bottom},top={top},transition=0"
    assert found.kept == pytest.approx((1.0, 1.0)) and found.is_clear
    assert sum(found.language) == pytest.approx(1.0)
    assert "heuristic" in found.reasoning()
    Family.load(root).plan(found.name)


def test_contested_layers_are_averaged(root):
    expert(root, "math", [0.0, 0.0, 0.15, 0.3, 0.3, 0.15, 0.0, 0.0])
    expert(root, "swahili", [0.3, 0.3, 0.2, 0.0, 0.0, 0.2, 0.3, 0.3])
    found = suggest(Family.load(root), "math+swahili")
    assert found.transition == 1
    assert "is averaged" in found.reasoning()


def test_an_even_spread_gives_the_preset_and_says_so(root):
    for name in ("math", "swahili"):
        write_checkpoint(root / name, make_tensors(0))
    found = suggest(Family.load(root), "math+swahili")
    assert (found.bottom, found.top, found.transition) == (1, 1, 0)
    assert not found.is_clear and "hardly a reason" in found.reasoning()


def test_a_family_that_soups_gets_a_name_that_works(root, edit):
    path = edit(recipe={"method": "soup"})
    expert(root, "math", [0, 0, 0.1, 0.1, 0.1, 0.1, 0, 0])
    expert(root, "swahili", [0.1, 0.1, 0, 0, 0, 0, 0.1, 0.1])
    family = Family.load(path)
    found = suggest(family, "math+swahili")
    assert found.name == "math+swahili@preset=paper,bottom=2,top=2,transition=0"
    assert [blend.describe() for blend in family.plan(found.name).layers].count("math") == 4


def test_what_cannot_be_split(root):
    with pytest.raises(ComposeError, match="between a task and a language"):
        suggest(Family.load(root), "math")
    tensors = make_tensors(1)
    tensors["model.layers.2.mlp.up_proj.weight"][1, 1] = torch.nan
    write_checkpoint(root / "math", tensors)
    with pytest.raises(ComposeError, match=r"layers.2.mlp.up_proj.weight: its change is not finite"):
        suggest(Family.load(root), "math+swahili")


def test_the_command(root):
    (root / "family.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load((root / "family.yaml").read_text()), "compositions": {"tutor": "math+sw"}})
    )
    result = CliRunner().invoke(app, ["suggest", str(root), "tutor", "--plot", str(root / "a.png")])
    assert result.exit_code == 0, result.output
    assert "try: math+swahili@bottom=" in result.output and "heuristic" in result.output
    assert (root / "a.png").exists()
    result = CliRunner().invoke(app, ["suggest", str(root), "base"])
    assert result.exit_code == 2 and "between a task and a language" in result.output
