"""inspect --quality: exact costs no accuracy, fewer bits cost more, and the numbers are those of the definition."""

import json

import pytest
import torch
from pico import make_family
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from layerloom.composer import ComposeError, Family, extract, inspect, merge, quality
from layerloom.composer.sources.codecs import Exact, Int4, Int8, Lowrank, Sign
from layerloom.composer.tools.quality import random_tokens
from layerloom.server.commands.app import app


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("quality"), depth=4, experts={"math": "task", "swahili": "language"})


@pytest.fixture(scope="module")
def measured(path):
    return quality(Family.load(path), "math+swahili")


def test_exact_costs_nothing_and_fewer_bits_cost_more(measured):
    costs = {cost.codec: cost for cost in measured.costs}
    assert list(costs) == ["exact", "int8", "int4", "sign", "lowrank 16"]
    exact = costs["exact"]
    assert (exact.error, exact.divergence, exact.worst, exact.agreement) == (0.0, 0.0, 0.0, 1.0)
    for less, more in (("exact", "int8"), ("int8", "int4"), ("int4", "sign")):
        assert costs[less].bytes > costs[more].bytes
        assert costs[less].error < costs[more].error
        assert costs[less].divergence < costs[more].divergence
    assert all(cost.worst >= cost.divergence and 0 <= cost.agreement <= 1 for cost in measured.costs)
    assert measured.positions > measured.tokens > 0


def test_bytes_error_and_divergence_are_those_of_archives(path, tmp_path):
    root = path.parent
    for name in ("math", "swahili"):
        extract(root / "base", root / name, root / f"{name}.safetensors", Int4())
    other = root / "archives.yaml"
    other.write_text(path.read_text().replace("path: math", "path: math.safetensors"))
    other.write_text(other.read_text().replace("path: swahili", "path: swahili.safetensors"))
    before, after = Family.load(path), Family.load(other)
    (cost,) = quality(before, "math+swahili", codecs=[Int4()]).costs
    assert cost.bytes == sum(report.bytes for report in inspect(other))

    merged = [merge(family, "math+swahili", tmp_path / name) for name, family in (("a", before), ("b", after))]
    exact, lossy = (AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval() for out in merged)
    # The answers too are counted, so this is only near; of the same prompts.
    ids = torch.tensor(random_tokens(before))
    with torch.inference_mode():
        p, q = (model(ids).logits.double().log_softmax(-1) for model in (exact, lossy))
    assert cost.divergence == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=0.5)
    (again,) = quality(after, "math+swahili", codecs=[Exact()]).costs
    assert (again.error, again.divergence, again.agreement) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_other_architectures(tmp_path, architecture):
    family = Family.load(make_family(tmp_path, architecture, depth=4, experts={"math": "task"}))
    costs = quality(family, "math", codecs=[Exact(), Int8(), Sign(), Lowrank(rank=4)]).costs
    assert costs[0].divergence == 0.0 < costs[1].divergence < costs[2].divergence
    assert costs[3].codec == "lowrank 4"


def test_the_command(path):
    result = CliRunner().invoke(
        app, ["inspect", str(path), "--quality", "--json", "--prompt", "bada dede", "--prompt", "gi"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["name"], found["prompts"], len(found["costs"])) == ("math+swahili", "2 given", 5)
    result = CliRunner().invoke(app, ["inspect", str(path), "--quality", "--name", "math"])
    assert result.exit_code == 0 and "int4" in result.output and "greedy tokens" in result.output
    for words, message in (
        (["--quality", "--name", "base"], "is the base"),
        (["--quality", "--name", "nobody"], "there is no model"),
        (["--name", "math"], "go with --quality"),
        (["--quality", "--plot", "a.png"], "draws no picture"),
    ):
        result = CliRunner().invoke(app, ["inspect", str(path), *words])
        assert result.exit_code == 2 and message in result.output


def test_a_change_that_is_not_finite_names_its_tensor(tmp_path):
    path = make_family(tmp_path, depth=4, experts={"math": "task"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "math", dtype=torch.bfloat16)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "math")
    with pytest.raises(ComposeError, match=r"math: model.layers.1.mlp.up_proj.weight: .*not finite"):
        quality(Family.load(path), "math", codecs=[Int8()])
