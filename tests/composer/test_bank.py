"""Pages hold what merge writes, whatever the engine's layout, and are shared and freed."""

import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pico import make_family

from layerloom.composer import Bank, ComposeError, Family, kind_of, tensors


class Page(dict):
    __hash__ = object.__hash__


class Concatenated:
    """An engine whose layout is the Hugging Face one, tensor after tensor."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.bases = [Page() for _ in range(family.depth + 1)]

    def layout(self, part):
        base = self.family.base
        names = base.stem if part == self.family.depth else base.layer(part)
        start, places = 0, {}
        for name in names:
            size = torch.Size(base.tensors[name].shape).numel()
            places[name] = (start, start + size)
            start += size
        return places, start

    def size(self, part):
        return self.layout(part)[1]

    def fill(self, part, flat, named):
        places, _ = self.layout(part)
        for name, tensor in named:
            start, end = places[name]
            flat[start:end] = tensor.view(-1)

    def spans(self, part, kind):
        return [place for name, place in self.layout(part)[0].items() if kind_of(name) == kind]

    def room(self, part, dtype):
        return SimpleNamespace(flat=torch.empty(self.size(part), dtype=dtype))

    def keeps_base(self, dtype):
        return False

    def seal(self, part, room):
        return Page({name: room.flat[start:end].clone() for name, (start, end) in self.layout(part)[0].items()})

    def base_page(self, part):
        return self.bases[part]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = make_family(tmp_path_factory.mktemp("bank"), depth=8)
    table = {"0-5": {"attention": "swahili", "mlp": {"math": 0.5}, "norm": "base"}, "6-7": "math"}
    path.write_text(
        path.read_text() + f"compositions:\n  pieces:\n    recipe: {{method: table, layers: {table}, stem: bengali}}\n"
    )
    return path


@pytest.fixture
def family(path) -> Family:
    return Family.load(path)


@pytest.mark.parametrize("name", ["math", "math+swahili", "math+bengali@bottom=2,weight=0.25,stem=average", "pieces"])
def test_pages_hold_what_merge_writes(family, name):
    plan = family.plan(name)
    pages = Bank(family, Concatenated(family)).pages(plan)
    expected = dict(tensors(family, plan))
    found = {name: tensor for page in pages for name, tensor in page.items()}
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert torch.equal(found[tensor].view(torch.int16), values.reshape(-1).view(torch.int16)), tensor


def test_compositions_share_pages(family):
    bank = Bank(family, Concatenated(family))
    swahili, bengali = (bank.pages(family.plan(f"math+{name}@transition=0")) for name in ("swahili", "bengali"))
    shared = [a is b for a, b in zip(swahili, bengali, strict=True)]
    swap = family.plan("math+swahili@transition=0")
    assert shared == [blend.uniform == (("math", 1.0),) for blend in swap.layers] + [False]
    assert len(bank) == 2 * len(shared) - sum(shared)
    again = bank.pages(family.plan("swahili+math@transition=0"))
    assert all(a is b for a, b in zip(again, swahili, strict=True))


def test_pages_are_freed_with_their_last_composition(family):
    bank = Bank(family, Concatenated(family))
    pages = bank.pages(family.plan("math+swahili"))
    assert len(bank) == len(pages)
    del pages
    gc.collect()
    assert len(bank) == 0


def test_the_base_is_the_engines_own(family):
    engine = Concatenated(family)
    bank = Bank(family, engine)
    assert list(bank.pages(family.plan("base"))) == engine.bases
    assert len(bank) == 0


def test_a_failure_leaves_nothing_behind(family, monkeypatch):
    engine = Concatenated(family)
    bank = Bank(family, engine)

    def broken(part, flat):
        if part == 5:
            raise ComposeError("no room")
        return Page()

    monkeypatch.setattr(engine, "seal", broken)
    with pytest.raises(ComposeError, match="no room"):
        bank.pages(family.plan("math"))
    gc.collect()
    assert len(bank) == 0
