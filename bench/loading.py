"""How long a new composition takes to its first token, at Qwen2.5-1.5B's size, and what memory that costs.

    python bench/loading.py [--sources checkpoint exact int4 sign] [--pages packed|arena] [--rounds 3] [--small]
    python bench/loading.py --paper [--speeds disk=7 decode=2 …]

A family of random numbers: a base, a task expert `math` and languages, 3.1 GB each as checkpoints, or as archives that
`layerloom extract` makes of them. For every kind of source a server is started afresh --rounds times, and is asked for

    math               a whole expert; counted are the 3.1 GB of a checkpoint, whatever is stored
    math+language-1    the first pair: new are the language's own layers, those averaged, and the stem, each once
    math+language-2    … and the same of every further one of --languages: the row is the median of these

each with one short prompt for one token, and then three times more: what the first request took longer than the median
of the others is `making`, and GB/s are the bytes of the new pages by that. `of copy` is the share of what the faster of
one and two threads copies in memory, measured just before. Files are in the page cache (--warm-memory: and as much
memory as may be needed was in use a moment before, see shared/fresh.py). All this is seen from outside, by HTTP and
/proc. Memory is the engine's process; `peak` what it had at most beside what it keeps.

Disk: 3.1 GB for each model, and for each archive 10% (sign) to 45% (int8) of that; memory: about 20 GB with two
languages.

--stages measures instead where the time goes, inside an engine of this process (shared/stages.py): for the checkpoints,
a whole expert and a new language. A stage's seconds are on the wall; packing goes on while the next matrix is read.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx

from shared import fresh
from shared.families import QWEN_1_5B, Model, write_family, write_yaml
from shared.memory import Memory, forget_peak, memory_of, peak, proportional
from shared.on_paper import SPEEDS, on_paper
from shared.report import Report
from shared.served import EAGER, Served, layerloom, on_cores, served, stock
from shared.speeds import Speeds, read_all
from shared.stages import profile

SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "vocab_size": 8192}
CODECS = ("exact", "int8", "int4", "sign", "lowrank")
OPTIONS = ("--kv-cache-memory-bytes", "256M", "--max-model-len", "512", *EAGER)
AGAIN = 3


@dataclass(frozen=True)
class Made:
    """One new composition: seconds, bytes, and GB/s."""

    what: str
    bytes: int
    first: float
    again: float
    copy: float
    before: Memory
    after: Memory
    peak: int
    together: int
    """Bytes that all of the server's processes have more than before."""

    @property
    def making(self) -> float:
        return self.first - self.again

    @property
    def rate(self) -> float:
        return self.bytes / max(self.making, 1e-3) / 1e9


def checkpoints(root: Path, names: Iterable[str]) -> list[Path]:
    return [file for name in names for file in sorted((root / name).glob("*.safetensors"))]


def archived(root: Path, model: Model, experts: dict[str, str], codec: str) -> Path:
    """The family with experts as archives. Raises CalledProcessError."""
    (root / codec).mkdir()
    for expert in experts:
        out = root / codec / f"{expert}.safetensors"
        command = [layerloom(root)[0], "extract", root / "base", root / expert, "-o", out, "--codec", codec]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    paths = {name: (kind, f"{codec}/{name}.safetensors") for name, kind in experts.items()}
    return write_yaml(root / f"family-{codec}.yaml", model, paths)


class Trial:
    """A server that has just been started, and who asks it."""

    def __init__(self, running: Served, speeds: Speeds, warm: bool) -> None:
        self.running = running
        self.speeds = speeds
        self.warm = warm
        self._number = itertools.count()
        self.ask("base")

    def ask(self, name: str) -> float:
        """Seconds to the first token, of a prompt that was not there before."""
        number = next(self._number)
        body = {"model": name, "prompt": [3 + (number + 7 * i) % 200 for i in range(8)], "max_tokens": 1}
        began = time.perf_counter()
        response = httpx.post(f"{self.running.server.url}/v1/completions", json=body, timeout=900)
        if response.status_code != 200:
            raise SystemExit(f"{name}: {response.status_code} {response.text}\n{self.running.server.tail(20)}")
        return time.perf_counter() - began

    def make(self, what: str, name: str, bytes: int, files: list[Path]) -> Made:
        copy = max(self.speeds.copy().values())
        engine = self.running.engine
        before, together = memory_of(engine), proportional(self.running.processes)
        forget_peak(engine)
        # An arena's pages are read into other memory first, and tied embeddings may be kept twice.
        with fresh.warm(2 * bytes + bytes // 2) if self.warm else nullcontext():
            read_all(files)
            first = self.ask(name)
        most = peak(engine)
        again = statistics.median(self.ask(name) for _ in range(AGAIN))
        after = memory_of(engine)
        grown = proportional(self.running.processes) - together
        made = Made(what, bytes, first, again, copy, before, after, most, grown)
        print(f"  {name}: {first:.2f} s, again {again:.2f} s, {made.rate:.2f} GB/s", file=sys.stderr, flush=True)
        return made


def tried(args: argparse.Namespace, root: Path, model: Model, source: str, family: Path, speeds: Speeds) -> list[Made]:
    """What one fresh server makes, its start first."""
    languages = [f"language-{i + 1}" for i in range(args.languages)]
    memory = (2 + args.languages) * model.bytes()
    options = ("--pages", args.pages, "--max-loras", "2", "--bank-memory", str(memory), *OPTIONS)
    names = {"math": "whole expert", languages[0]: "first language", **dict.fromkeys(languages[1:], "new language")}
    read_all(checkpoints(root, ["base"]))
    with served(layerloom(family, *options), root / "log", on_cores(args.cores), args.cores) as running:
        start, engine = running.seconds, memory_of(running.engine)
        print(f"{source}: up in {start:.1f} s", file=sys.stderr, flush=True)
        together = proportional(running.processes)
        nothing = Memory(0, 0, 0)
        made = [Made("start", model.bytes(), start, 0.0, 0.0, nothing, engine, peak(running.engine), together)]
        trial = Trial(running, speeds, args.warm_memory)
        for expert, what in names.items():
            files = checkpoints(root, [expert]) if source == "checkpoint" else [root / source / f"{expert}.safetensors"]
            if source != "checkpoint":
                # The base's numbers are what differences are from.
                files += checkpoints(root, ["base"])
            size = model.bytes() if expert == "math" else model.bytes(model.own)
            made.append(trial.make(what, expert if expert == "math" else f"math+{expert}", size, files))
    return made


def middle(made: list[Made], value: str) -> float:
    return statistics.median(getattr(each, value) for each in made)


def tables(report: Report, title: str, rows: dict[tuple[str, str], list[Made]]) -> None:
    new = [(*key, made) for key, made in rows.items() if key[1] != "start"]
    columns = ("source", "what", "GB", "first token, s", "once more, s", "making, s", "GB/s", "of copy")
    report.table(
        f"New compositions, {title}",
        columns,
        [
            (
                *(source, what, made[0].bytes / 1e9),
                *(middle(made, value) for value in ("first", "again", "making", "rate")),
                statistics.median(each.rate / each.copy for each in made),
            )
            for source, what, made in new
        ],
    )
    columns = ("source", "what", "anonymous before", "anonymous", "mapped", "shared", "peak", "all processes")
    grown = {key: [each.after - each.before for each in made] for key, made in rows.items()}
    report.table(
        "Memory, MB: of the engine's process before, and added; at most beside what is kept; added in all processes",
        columns,
        [
            (
                *(source, what, statistics.median(each.before.anonymous for each in made) / 1e6),
                *(
                    statistics.median(getattr(each, kind) for each in grown[source, what]) / 1e6
                    for kind in ("anonymous", "mapped", "shared")
                ),
                statistics.median(each.peak - each.after.resident for each in made) / 1e6,
                middle(made, "together") / 1e6,
            )
            for (source, what), made in rows.items()
        ],
    )


def machine(report: Report, speeds: Speeds, file: Path, rates: dict[str, float]) -> None:
    copy, read = speeds.copy(), speeds.read(file)
    rows = [(f"copy of memory, {n} threads", rate) for n, rate in copy.items()]
    rows += [(f"read from the page cache, {n} threads", rate) for n, rate in read.items()]
    rows += [(f"write to fresh memory, {kind}", rate) for kind, rate in rates.items()]
    report.table("The machine", ("what", "GB/s"), rows)


def stages(report: Report, family: Path, model: Model, pages: str) -> None:
    @contextmanager
    def ready() -> Iterator[None]:
        with fresh.warm(2 * model.bytes()):
            read_all(family.parent.glob("*/*.safetensors"))
            yield

    sizes = {"math": model.bytes(), "math+language-1": model.bytes(model.own)}
    for name, (making, clock) in profile(family, list(sizes), pages, ready).items():
        rows = [(stage, took, sizes[name] / 1e9 / took) for stage, took in clock.seconds.items()]
        rows.append(("until it is there", making, sizes[name] / 1e9 / making))
        report.table(f"Stages of {name}, {pages} pages", ("stage", "s", "GB/s"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", choices=("checkpoint", *CODECS), metavar="SOURCE")
    parser.add_argument("--pages", choices=("packed", "arena"), default="packed")
    parser.add_argument("--rounds", type=int, default=3, help="fresh servers for each kind of source")
    parser.add_argument("--languages", type=int, default=2, help="in each round; two at least")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="17 M parameters, to try it")
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--place", type=Path, help="where the temporary directory is made")
    parser.add_argument("--warm-memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--stages", action="store_true", help="where the time goes, and nothing else")
    parser.add_argument("--paper", action="store_true", help="no measuring: an 8B model's bytes and seconds on a GPU")
    parser.add_argument(
        "--speeds", nargs="+", default=[], metavar="NAME=GB/s", help=f"for --paper: {', '.join(SPEEDS)}"
    )
    args = parser.parse_args()
    if args.stages and "GLIBC_TUNABLES" not in os.environ:
        # As the processes of a server are started.
        from layerloom.server.options import prepare_environment

        prepare_environment()
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if args.paper:
        on_paper(Report(args.csv), args.speeds)
        return
    sizes = {"hidden_size": args.hidden, "num_hidden_layers": args.depth, "vocab_size": args.vocab}
    settings = {**QWEN_1_5B, **(SMALL if args.small else {}), **{key: size for key, size in sizes.items() if size}}
    model = Model.of("qwen2", **settings)
    warmed = "just used by another process" if args.warm_memory else "as it came"
    report = Report(
        args.csv,
        family=f"{json.dumps(settings)}, {model.bytes() / 1e9:.2f} GB",
        language=f"{len(model.own) - 1} layers and the stem are a pair's own, {model.bytes(model.own) / 1e9:.2f} GB",
        served=f"{args.pages} pages, {args.cores} cores, {args.rounds} rounds",
        files=f"in the page cache; memory {warmed}",
    )
    rates = fresh.rates(min(model.bytes() // 3, fresh.available() // 8))
    experts = {"math": "task"} | {f"language-{i + 1}": "language" for i in range(args.languages)}
    with tempfile.TemporaryDirectory(prefix="layerloom-loading-", dir=args.place) as place:
        root = Path(place)
        began = time.perf_counter()
        family = write_family(root, model, experts)
        print(f"written in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        speeds = Speeds()
        machine(report, speeds, max(checkpoints(root, ["base"]), key=lambda file: file.stat().st_size), rates)
        if args.stages:
            stages(report, family, model, args.pages)
            return
        rows: dict[tuple[str, str], list[Made]] = {}
        starts = {}
        read_all(checkpoints(root, ["base"]))
        with served(stock(root / "base", *OPTIONS), root / "log", on_cores(args.cores), args.cores) as running:
            starts["stock vLLM on the base"] = running.seconds
        for source in args.sources or ("checkpoint", "exact", "int4", "sign"):
            used = family if source == "checkpoint" else archived(root, model, experts, source)
            for _ in range(args.rounds):
                for made in tried(args, root, model, source, used, speeds):
                    rows.setdefault((source, made.what), []).append(made)
            starts[f"layerloom, {source}"] = middle(rows[source, "start"], "first")
        first = next(iter(starts.values()))
        report.table("Start", ("server", "to /health, s", "of stock"), [(n, s, s / first) for n, s in starts.items()])
        tables(report, f"{args.pages} pages", rows)


if __name__ == "__main__":
    main()
