"""How long running answers wait while compositions that nobody has used are made, and who else does.

    python bench/stall.py [--pages packed arena] [--cores 1 2] [--new 20] [--csv out.csv]

A random Llama of 193 M parameters, 16 layers. Sixteen clients read answers of `base`, token by token. Their gaps, those
of all of them, are recorded in phases, each of them with answers that have just begun:

    quiet      nothing else for --seconds
    control    requests for compositions that are there already, one token each: one after another, at least --new of
               them and at least --seconds
    control 4  the same, four at a time
    new        --new compositions that nobody has asked for, one after another
    new 4      as many again, four at a time
    …, beside  `control` and `new` again, while another client asks for compositions that are there, one after another
               with a pause of 0.1 s: what its requests took is in the column `beside`

`first token` is of the requests that the phase is named for. Each server is started afresh, on the first of --cores
cores, and the clients are on the others, if there are any. Of two cores vLLM computes with one and leaves one to its
scheduler, if nobody says otherwise, and nobody does here. Prompts are of 24 tokens, files in the page cache; memory for
the pages was in use a moment before (shared/fresh.py).

Every new composition is `math` with another language, and makes 150 MB of pages: 4 layers of 23.6 MB that are the
language's, 2 that are averaged with `math` and read from both, and a stem of 8.4 MB. The middle layers are math's, and
there already. `added` is what the engine's process has grown by for each, which shows that they were made; of 68
languages 8 are on the disk (1.2 GB) and the others are names of the same files, which the server cannot know.
Pages of 6 GB are made and kept.

`clients late` is the most that the clients' own clock was late by: where that is no small part of a worst gap, they had
no core, or the whole machine stood still, and the phase says nothing. Of few gaps the worst is p99.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openai import AsyncOpenAI

from shared import fresh
from shared.families import Model, twin, write_family, write_yaml
from shared.memory import memory_of
from shared.report import Report
from shared.served import EAGER, Served, layerloom, on_cores, served
from shared.speeds import read_all
from shared.streams import gaps, lateness, prompt, quantile, streams
from shared.synthetic import SHAPE

SMALL = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 2, "num_key_value_heads": 1}
STREAMS, DISTINCT, READY = 16, 8, 4
PAUSE = 0.1
SETTLED = 1.5
"""Seconds after which nobody holds what has been asked for."""


@dataclass
class Phase:
    """What was found: seconds of each gap and of each request, and the bytes that the engine has grown by."""

    name: str
    asked: int = 0
    gaps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    added: int = 0
    late: float = 0.0
    """The most seconds that the clients came too late to what was due."""


class Trial:
    """A server with languages of which the first few are there, and the clients."""

    def __init__(self, running: Served, client: AsyncOpenAI, ready: Sequence[str]) -> None:
        self.running = running
        self.client = client
        self.ready = ready
        self._number = itertools.count(1000)

    async def ask(self, name: str) -> float:
        """Seconds to the first token."""
        began = time.perf_counter()
        await self.client.completions.create(model=name, prompt=prompt(next(self._number)), max_tokens=1)
        return time.perf_counter() - began

    async def phase(
        self, name: str, names: Iterable[str], at_once: int, least: float = 0.0, beside: bool = False
    ) -> Phase:
        """Asks for `names`, so many at once, to their end or until `least` seconds have passed.

        With `beside` another client asks for what is there meanwhile.
        """
        found, left, engine = Phase(name), iter(names), self.running.engine
        before = memory_of(engine)
        async with streams(self.client, STREAMS) as answers, lateness() as late:
            start = time.perf_counter()

            async def one_client() -> None:
                for name in left:
                    found.first.append(await self.ask(name))

            async def neighbour() -> None:
                for name in itertools.cycle(self.ready):
                    found.beside.append(await self.ask(name))
                    await asyncio.sleep(PAUSE)

            other = asyncio.create_task(neighbour() if beside else asyncio.sleep(0))
            await asyncio.gather(*(one_client() for _ in range(at_once)))
            await asyncio.sleep(max(0.0, start + least - time.perf_counter()))
            end = time.perf_counter()
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
        found.gaps = gaps(answers, start, end)
        found.asked, found.late = len(found.first), max(late)
        found.added = memory_of(engine).resident - before.resident
        worst = 1000 * max(found.gaps)
        print(f"  {name}: {end - start:.1f} s, worst gap {worst:.0f} ms", file=sys.stderr, flush=True)
        return found

    def again(self, count: int, seconds: float) -> Iterator[str]:
        """Names that are there, at least `count` of them and for at least so many seconds."""
        end = time.perf_counter() + seconds
        for number, name in enumerate(itertools.cycle(self.ready)):
            if number >= count and time.perf_counter() > end:
                return
            yield name


async def tried(running: Served, names: Sequence[str], new: int, seconds: float, size: int) -> list[Phase]:
    """All phases; `size` is in bytes and of the pages that one name makes."""
    async with AsyncOpenAI(base_url=f"{running.server.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        trial = Trial(running, client, names[:READY])
        for name in ("base", *trial.ready):
            await trial.ask(name)
        # The first batches of many compositions take longer than all later ones.
        await trial.phase("not recorded", trial.again(2 * STREAMS, 0), 4)
        phases = [
            await trial.phase("quiet", (), 0, seconds),
            await trial.phase("control", trial.again(new, seconds), 1),
            await trial.phase("control 4", trial.again(new, seconds), 4),
            await trial.phase("control, beside", trial.again(new, seconds), 1, beside=True),
        ]
        for number, (title, at_once) in enumerate((("new", 1), ("new 4", 4), ("new, beside", 1))):
            await asyncio.sleep(SETTLED)
            first = READY + number * new
            with fresh.warm(new * size * 3 // 2):
                some = names[first : first + new]
                phases.append(await trial.phase(title, some, at_once, beside=title.endswith("beside")))
        return phases


def rows(pages: str, cores: int, phases: Sequence[Phase]) -> Iterator[tuple[str | float | None, ...]]:
    """A row for each phase, in ms and MB."""
    p99 = {phase.name: quantile(phase.gaps, 0.99) for phase in phases}
    for phase in phases:
        control = p99.get(phase.name.replace("new", "control"), 0.0)
        times = [
            1000 * f(values) if values else None
            for values in (phase.first, phase.beside)
            for f in (statistics.median, max)
        ]
        yield (
            *(pages, str(cores), phase.name, len(phase.gaps)),
            *(1000 * quantile(phase.gaps, share) for share in (0.5, 0.99, 1.0)),
            p99[phase.name] / p99["quiet"],
            p99[phase.name] / control if phase.name.startswith("new") else None,
            *(phase.asked, *times),
            phase.added / phase.asked / 1e6 if phase.asked else None,
            1000 * phase.late,
        )


COLUMNS = (
    *("pages", "cores", "phase", "gaps", "p50, ms", "p99, ms", "worst, ms", "p99 of quiet's", "p99 of control's"),
    *("requests", "first token, ms", "worst first token", "beside, ms", "worst beside", "added, MB each"),
    "clients late, ms",
)


def make(root: Path, model: Model, count: int) -> tuple[Path, list[str]]:
    """A family with `count` languages, and the names of its pairs."""
    distinct = [f"language-{i}" for i in range(min(count, DISTINCT))]
    others = [f"language-{i}" for i in range(len(distinct), count)]
    middle = [part for part in range(model.depth) if part not in model.own]
    experts = {"math": "task", **dict.fromkeys(distinct, "language")}
    write_family(root, model, experts, [model.own, middle], {name: [0] for name in distinct})
    for number, name in enumerate(others):
        twin(root / distinct[number % len(distinct)], root / name)
    kinds = {"math": "task", **dict.fromkeys((*distinct, *others), "language")}
    family = write_yaml(root / "family.yaml", model, {name: (kind, name) for name, kind in kinds.items()})
    read_all([file for name in ("base", *experts) for file in (root / name).glob("*.safetensors")])
    return family, [f"math+{language}" for language in (*distinct, *others)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="+", choices=("packed", "arena"), default=["packed", "arena"])
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--new", type=int, default=20, help="compositions in each of the two last phases")
    parser.add_argument("--seconds", type=float, default=15, help="of the phases without new ones")
    parser.add_argument("--small", action="store_true", help="a smaller model, to try it")
    parser.add_argument("--place", type=Path, help="where the temporary directory is made")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    model = Model.of("llama", num_hidden_layers=16, **{**SHAPE, **(SMALL if args.small else {})})
    size = model.bytes(model.own)
    new = f"{len(model.own) - 1} layers and the stem, {size / 1e6:.0f} MB"
    report = Report(args.csv, family=f"{model.bytes() / 1e6:.0f} MB; new with each pair: {new}", streams=STREAMS)
    found = []
    with tempfile.TemporaryDirectory(prefix="layerloom-stall-", dir=args.place) as place:
        family, names = make(Path(place), model, READY + 3 * args.new)
        memory = 2 * model.bytes() + (len(names) + 4) * size
        options = ("--max-loras", "8", "--bank-memory", str(memory), "--kv-cache-memory-bytes", "1G", *EAGER)
        for pages in args.pages:
            for cores in args.cores:
                print(f"{pages} pages, {cores} cores", file=sys.stderr, flush=True)
                command = layerloom(family, "--pages", pages, *options)
                with served(command, Path(place) / "log", on_cores(cores), cores) as running:
                    phases = asyncio.run(tried(running, names, args.new, args.seconds, size))
                found += rows(pages, cores, phases)
        report.table("Gaps between the tokens of running answers", COLUMNS, found)


if __name__ == "__main__":
    main()
