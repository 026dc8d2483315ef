"""What archives take and how fast they load: for a real fine-tune of the demo base, noise, and large pairs.

    python bench/archives.py [--steps 300] [--rates 1e-6 1e-5 1e-4] [--hidden 896] [--depth 12] [--clock cpu] [--csv F]

The fine-tune is the demo base taught Swahili stories, with AdamW in fp32 at a low learning rate, and written in bf16.
Noise is a checkpoint with the base's shapes whose numbers have nothing to do with it. The demo is so small that opening
files is much of its loading, so there are random pairs of --hidden and --depth as well (shared/synthetic.py), as they
come and with a share of their numbers moved; the first is stored under the lossy codecs, too.

Loading is reading each of an open expert's tensors into memory that is there already; files in the page cache, the base
read before. Checkpoint and archive take turns; times are medians of --rounds, in CPU time; --clock wall is for a
machine of one's own.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from layerloom.composer import Archive, Checkpoint, Source, extract
from layerloom.composer.sources.codecs import CODECS
from shared.demo_data import example
from shared.report import Cell, Report
from shared.synthetic import write_pair

BATCH, TASKS = 16, ("generic", "math")
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def fine_tune(base: Path, out: Path, steps: int, rate: float) -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(1, steps + 1):
        pairs = [example("sw", rng.choice(TASKS), rng) for _ in range(BATCH)]
        texts = [f"{question}\n{answer}<eos>" for question, answer in pairs]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step in (1, steps):
            print(f"rate {rate:g}: step {step}, loss {loss.item():.3f}", flush=True)
    write(model, base, out)


def noise(base: Path, out: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.std() * torch.randn(parameter.shape)
    write(model, base, out)


def write(model: LlamaForCausalLM, base: Path, out: Path) -> None:
    model.bfloat16().save_pretrained(out)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, out)


@dataclass(frozen=True)
class Compared:
    """A checkpoint's median seconds, and the median of what an archive takes of them."""

    seconds: float
    ratio: float


def compare(checkpoint: Source, archive: Source, clock: str, rounds: int) -> Compared:
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    page = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}

    def seconds(source: Source) -> float:
        start = CLOCKS[clock]()
        for name, out in page.items():
            source.read(name, out)
        return CLOCKS[clock]() - start

    seconds(archive)
    found = []
    for _ in range(rounds):
        took = seconds(checkpoint)
        found.append((took, seconds(archive) / took))
    return Compared(*map(statistics.median, zip(*found, strict=True)))


def moved(pair: Path, out: Path, share: float) -> None:
    """The pair's expert with only a share of its numbers moved."""
    out.mkdir()
    generator = torch.Generator().manual_seed(2)
    for file in sorted((pair / "base").glob("*.safetensors")):
        base, expert = load_file(file), load_file(pair / "expert" / file.name)
        picked = {name: torch.rand(tensor.shape, generator=generator) < share for name, tensor in base.items()}
        tensors = {name: torch.where(picked[name], expert[name], tensor) for name, tensor in base.items()}
        save_file(tensors, out / file.name)
    for file in (pair / "base").glob("*.json"):
        shutil.copy(file, out)


def bits(checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
    return (checkpoint.read(name).view(-1).view(torch.int16) for name in sorted(checkpoint.tensors))


def row(title: str, base: Path, expert: Path, codec: str, clock: str, rounds: int) -> list[Cell]:
    archive = expert.with_name(f"{expert.name}-{codec}.safetensors")
    extract(base, expert, archive, CODECS[codec]())
    size, stored = sum(file.stat().st_size for file in expert.glob("*.safetensors")), archive.stat().st_size
    before, after = Checkpoint(base), Checkpoint(expert)
    kept = sum(int((b == e).sum()) for b, e in zip(bits(before), bits(after), strict=True))
    total = sum(e.numel() for e in bits(after))
    loading = compare(after, Archive(archive, before), clock, rounds)
    archive.unlink()
    shares = 100 * kept / total, size / 1e6, 100 * stored / size
    return [f"{title}, {codec}", *shares, 1e3 * loading.seconds, loading.ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("demo/base"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-6, 1e-5, 1e-4])
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.01, 0.1, 0.3])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(options.csv, clock=f"{options.clock}, one thread, {options.rounds} rounds")
    rows: list[list[Cell]] = []

    def measure(title: str, base: Path, expert: Path, codec: str = "exact") -> None:
        rows.append(row(title, base, expert, codec, options.clock, options.rounds))

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for rate in options.rates:
            out = root / f"rate-{rate:g}"
            fine_tune(options.base, out, options.steps, rate)
            measure(f"fine-tune, {options.steps} steps at {rate:g}", options.base, out)
        noise(options.base, root / "noise")
        measure("noise", options.base, root / "noise")
        large = root / "large"
        write_pair(large, options.hidden, options.depth)
        for codec in CODECS:
            measure("random pair", large / "base", large / "expert", codec)
        for share in options.shares:
            moved(large, large / "moved", share)
            measure(f"random pair, {share:.0%} moved", large / "base", large / "moved")
            shutil.rmtree(large / "moved")
    columns = ("numbers not changed, %", "checkpoint, MB", "archive, % of it", "it loads in, ms", "archive, times that")
    report.table("Archives, and how fast they load", ("expert, codec", *columns), rows)


if __name__ == "__main__":
    main()
