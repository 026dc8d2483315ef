"""What an exact archive takes and how fast it loads: for a real fine-tune of the demo base, noise, and a large pair.

    python bench/archives.py [--steps 300] [--rates 1e-6 1e-5 1e-4] [--hidden 1024] [--depth 10] [--clock cpu]

The fine-tune is the demo base taught Swahili stories, with AdamW in fp32 at a low learning rate, and written in bf16.
Noise is a checkpoint with the base's shapes whose numbers have nothing to do with it. The demo is so small that opening
files is much of its loading, so there is a random pair of --hidden and --depth as well (bench/synthetic.py, 290 MB).

zstd is of the checkpoint's files, at level 3 and at level 19 (of the large pair the first 32 MB). Loading is opening
the expert and copying each of its tensors into memory that is there already, files in the page cache, the base open and
its digest known; checkpoint and archive take turns. Times and the ratio are medians of --rounds, in CPU time; --clock
wall is for a machine of one's own.
"""

import argparse
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import zstandard
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from layerloom.composer import Archive, Checkpoint, Source, extract
from shared.demo_data import example
from shared.synthetic import write_pair

BATCH, TASKS = 16, ("generic", "math")
SAMPLE = 32 << 20
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
    """Two ways to load one expert: median seconds of each, and the median of what the second takes of the first."""

    first: float
    second: float
    ratio: float


def compare(open_first: Callable[[], Source], open_second: Callable[[], Source], clock: str, rounds: int) -> Compared:
    most = max(torch.Size(info.shape).numel() for info in open_first().tensors.values())
    buffer = torch.zeros(most, dtype=torch.bfloat16)

    def seconds(opened: Callable[[], Source]) -> float:
        start = CLOCKS[clock]()
        source = opened()
        for name in source.tensors:
            tensor = source.read(name)
            buffer[: tensor.numel()].copy_(tensor.view(-1))
        return CLOCKS[clock]() - start

    times = [(seconds(open_first), seconds(open_second)) for _ in range(rounds)]
    firsts, seconds_ = zip(*times, strict=True)
    return Compared(*map(statistics.median, (firsts, seconds_, [b / a for a, b in times])))


def bits(checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
    return (checkpoint.read(name).view(-1).view(torch.int16) for name in sorted(checkpoint.tensors))


def row(title: str, base: Path, expert: Path, clock: str, rounds: int) -> str:
    archive = expert.with_suffix(".safetensors")
    extract(base, expert, archive)
    files = sorted(expert.glob("*.safetensors"))
    raw = b"".join(file.read_bytes() for file in files[:4])[:SAMPLE]
    fast, small = (len(zstandard.ZstdCompressor(level=level).compress(raw)) / len(raw) for level in (3, 19))
    size, stored = sum(file.stat().st_size for file in files), archive.stat().st_size
    before, after = Checkpoint(base), Checkpoint(expert)
    kept = sum(int((b == e).sum()) for b, e in zip(bits(before), bits(after), strict=True))
    total = sum(e.numel() for e in bits(after))
    loading = compare(lambda: Checkpoint(expert), lambda: Archive(archive, before), clock, rounds)
    return (
        f"| {title} | {kept / total:.0%} | {size / 1e6:.2f} | {fast:.1%} | {small:.1%} | {stored / size:.1%} "
        f"| {1e3 * loading.first:.1f} | {1e3 * loading.second:.1f} | {loading.ratio:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("demo/base"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-6, 1e-5, 1e-4])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        rows = []
        for rate in options.rates:
            out = root / f"rate-{rate:g}"
            fine_tune(options.base, out, options.steps, rate)
            title = f"fine-tune, {options.steps} steps at {rate:g}"
            rows.append(row(title, options.base, out, options.clock, options.rounds))
        noise(options.base, root / "noise")
        rows.append(row("noise", options.base, root / "noise", options.clock, options.rounds))
        write_pair(root / "large", options.hidden, options.depth)
        large = root / "large"
        rows.append(row("random pair", large / "base", large / "expert", options.clock, options.rounds))
    columns = (
        *("numbers not changed", "checkpoint, MB", "zstd -3", "zstd -19", "`exact`"),
        *("load checkpoint, ms", "load archive, ms", "ratio"),
    )
    print(f"\n| | {' | '.join(columns)} |")
    print("|---|" + "---:|" * len(columns))
    print("\n".join(rows))
    print(
        f"\nOne thread of an {platform.machine()} CPU, {options.clock} time, Python {platform.python_version()}, "
        f"torch {torch.__version__}, zstandard {zstandard.__version__}."
    )


if __name__ == "__main__":
    main()
