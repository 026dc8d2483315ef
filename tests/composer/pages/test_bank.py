"""Pages hold what merge writes, whatever the engine's layout, and are shared and freed."""

import gc
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from pico import EXPERTS, make_family
from safetensors.torch import load_file, save_file

from layerloom.composer import Archive, Bank, ComposeError, Family, extract, kind_of, tensors
from layerloom.composer.sources.codecs import Exact, Int4, Int8, Lowrank, Sign

CODECS = [Exact(), Int8(), Int4(), Sign(), Lowrank(rank=8)]


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

    def learn(self, tensors):
        self.learned = tensors

    def pieces(self, part):
        return [slice(start, end) for start, end in self.layout(part)[0].values()]

    def fill(self, part, piece, into, names, read):
        places, _ = self.layout(part)
        for name in names:
            if places[name] == (piece.start, piece.stop):
                place = into.view(self.learned[name].shape)
                place.copy_(read(name, place))

    def spans(self, part, kind):
        return [place for name, place in self.layout(part)[0].items() if kind_of(name) == kind]

    def bytes(self, part):
        return 0

    def reserve(self, part, codec):
        return Page()

    def spare(self, sizes):
        return [None] * len(sizes)

    def making(self):
        return nullcontext()

    def makes_in_place(self, dtype):
        return False

    def flat(self, spare, dtype, count):
        return torch.empty(count, dtype=dtype)

    def delta_bytes(self, part, codec):
        return None

    def keeps_base(self, dtype):
        return False

    def put(self, part, page, piece, made):
        places = {(start, end): name for name, (start, end) in self.layout(part)[0].items()}
        page[places[piece.start, piece.stop]] = made.clone()

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


def test_pages_of_two_dtypes(path, tmp_path):
    """bf16 matrices and fp32 norms: each is rounded to its own, and held in fp32."""
    for name in ("base", *EXPERTS):
        shutil.copytree(path.parent / name, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        stored = {tensor: t.float() if "norm" in tensor else t for tensor, t in load_file(file).items()}
        # Numbers that bf16 does not have.
        stored |= {tensor: t * 1.001 for tensor, t in stored.items() if "norm" in tensor}
        file.unlink()
        save_file(stored, file)
    shutil.copy(path, tmp_path / "family.yaml")
    family = Family.load(tmp_path)
    for name in ("math", "math+bengali@bottom=2,weight=0.25,stem=average", "pieces"):
        expected = dict(tensors(family, family.plan(name)))
        assert {tensor.dtype for tensor in expected.values()} == {torch.bfloat16, torch.float32}
        for page in Bank(family, Concatenated(family)).pages(family.plan(name)):
            for tensor, found in page.items():
                assert torch.equal(found, expected[tensor].reshape(-1).float()), tensor


@pytest.fixture(params=CODECS, ids=lambda codec: codec.codec)
def coded(request, path, family, tmp_path):
    """(a codec, the family with archives under it for experts, the family with checkpoints of what it decodes to)"""
    content, codec = yaml.safe_load(path.read_text()), request.param
    content["base"] = str(family.base.path)
    families = []
    for name in EXPERTS:
        source, base = family.checkpoint(name), family.base
        extract(base.path, source.path, tmp_path / f"{name}.safetensors", codec, everything=True)
        decoded = {}
        for tensor in source.tensors:
            e, b = source.read(tensor), base.read(tensor)
            used, parts = codec.encode(e, b) if codec.suits(e.shape) else (codec, None)
            decoded[tensor] = e if parts is None else used.decode(parts, b)
        (tmp_path / name).mkdir()
        save_file(decoded, tmp_path / name / "model.safetensors")
        shutil.copy(source.path / "config.json", tmp_path / name)
    for suffix in (".safetensors", ""):
        for name, expert in content["experts"].items():
            expert["path"] = f"{name}{suffix}"
        file = tmp_path / f"family{suffix}.yaml"
        file.write_text(yaml.safe_dump(content))
        families.append(Family.load(file))
    return codec, *families


def test_pages_from_archives_hold_what_the_decoded_tensors_compose_to(coded):
    _, archives, decoded = coded
    assert all(isinstance(archives.checkpoint(name), Archive) for name in EXPERTS)
    bank = Bank(archives, Concatenated(archives))
    for name in ("math", "math+bengali@bottom=2,weight=0.25,stem=average", "pieces"):
        expected = dict(tensors(decoded, decoded.plan(name)))
        found = {name: tensor for page in bank.pages(archives.plan(name)) for name, tensor in page.items()}
        assert found.keys() == expected.keys()
        for tensor, values in expected.items():
            assert torch.equal(found[tensor].view(torch.int16), values.reshape(-1).view(torch.int16)), tensor


def test_codecs_take_a_flat_page_too(coded, family):
    codec, archives, _ = coded
    engine, layer = Concatenated(family), 3
    sources = family.checkpoint("math"), family.base
    ours, theirs = (torch.cat([of.read(name).view(-1) for name in of.layer(layer)]) for of in sources)
    if codec.codec == "lowrank":
        assert not codec.suits(ours.shape)  # a page is no matrix: only a tensor has a rank
        return
    used, parts = codec.encode(ours, theirs)
    page = used.decode(parts, theirs)
    if codec.codec == "sign":  # a page is one row, with one scale
        delta = ours.float() - theirs.float()
        scale = delta.double().abs().mean().float()
        assert torch.equal(page, (theirs.float() + torch.where(delta < 0, -scale, scale)).bfloat16())
    else:  # every K here is a multiple of 128, so that the groups are the tensors' own
        whole = torch.cat(list(Bank(archives, engine).pages(archives.plan("math"))[layer].values()))
        assert torch.equal(page.view(torch.int16), whole.view(torch.int16))


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


def test_what_an_expert_leaves_as_it_was_is_the_bases(family, path, tmp_path):
    """An archive of the Swahili expert's layers 2 and 5 alone."""
    changed = {name for part in (2, 5) for name in family.base.layer(part)}
    source, base = family.checkpoint("swahili"), family.base
    tensors = {name: (source if name in changed else base).read(name).clone() for name in base.tensors}
    (tmp_path / "some").mkdir()
    save_file(tensors, tmp_path / "some" / "model.safetensors")
    shutil.copy(source.path / "config.json", tmp_path / "some")
    extract(base.path, tmp_path / "some", tmp_path / "some.safetensors")
    content = yaml.safe_load(path.read_text())
    content |= {"base": str(base.path), "compositions": {}}
    content["experts"] = {"some": {"kind": "task", "path": "some.safetensors"}}
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(content))
    few = Family.load(tmp_path / "family.yaml")
    engine = Concatenated(few)
    pages = Bank(few, engine).pages(few.plan("some"))
    own = [part for part, page in enumerate(pages) if page is not engine.bases[part]]
    assert own == [2, 5]
    for part in own:
        assert all(torch.equal(values, tensors[name].view(-1)) for name, values in pages[part].items())


def test_a_failure_leaves_nothing_behind(family, monkeypatch):
    engine = Concatenated(family)
    bank = Bank(family, engine)

    def broken(part, page, piece, made):
        if part == 5:
            raise ComposeError("no room")

    monkeypatch.setattr(engine, "put", broken)
    with pytest.raises(ComposeError, match="no room"):
        bank.pages(family.plan("math"))
    gc.collect()
    assert len(bank) == 0
