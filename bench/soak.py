"""Many more compositions than there is room for, asked for a long time: are all answers right, is memory flat?

    python bench/soak.py [--requests 20000] [--seconds 600] [--clients 64] [--judged 20] [--reloads 200]
                         [--csv out.csv] [--plot out.png]

A pico family of random numbers, 5 tasks and 40 languages: 200 pairs. The bank has room for the pairs of any 6
languages with all tasks, pages that they share counted once, and for what making a page takes beside it. Clients take
the next request of one seeded list as soon as they have had an answer, until --requests are taken or --seconds over. In
each request the task and one of 24 prompts are any, with equal chances, and the language is one whose chance goes with
1/rank (zipf); the answer is greedy and has 8 tokens. A 503 that says when to come again is repeated and counted;
anything else that is no answer has failed. A prompt fills a block of the KV cache, where a pair that was dropped and
made again finds it. With --reloads, family.yaml changes so often meanwhile, to one that is right and to one that is
broken in turn; experts' weights stay as they are, and so must the answers.

    tenths     The time in ten parts; an answer counts in the one that it ended in. Memory is the anonymous memory of
               the engine's process and of the API server's, looked at once in a second, the median. It is flat where
               the last tenth has no more than 3% and 8 MB above the second.
    bank       What GET /v1/bank counted; and an LRU on paper: the same requests in the order in which they were sent,
               one after another, each at once; room for as many bytes of pages, shared as the bank shares them; the
               pair that was longest unused dropped first, as if nothing were ever in use. `assemblies` are pairs that
               had to be made, `without` is the share of the requests beyond those, `each` the time that making one
               took once begun. `hits` are how often the API server asked the engine for a pair that was there, which
               it does once for all requests that it then has for it.
    answers    Those of one pair to one prompt must be the same every time. What was asked of --judged pairs is
               afterwards asked of stock vLLM on what `merge` writes, and the answers must be the same, too. Sums of
               other batches may be rounded otherwise, in bf16: a token that differs is "as good" where the other is
               less than 0.05 likelier in logprob, asked alone or of stock vLLM; else the answer is wrong.

The exit status is 1 if an answer was wrong, a request failed, memory was not flat or the engine ended.
"""

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from layerloom.composer import Bank, Family
from layerloom.composer.pages.budget import needed
from shared import judge, timeline
from shared.clients import Clients, Request
from shared.judge import Compared, Key, Reference, Told, compared, stock_answers
from shared.lru import Ideal, Sizes, ideal
from shared.memory import memory_of
from shared.reloads import Reloads
from shared.report import Report
from shared.served import Served, layerloom, on_cores, served
from shared.timeline import Sample

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from pico import make_family  # noqa: E402

TASKS, LANGUAGES, ROOM = 5, 40, 6
MIXED = 8
"""Compositions in a batch: with more, any of them at once would need a larger bank."""
TOKENS = 8
PROMPTS = [[3 + (37 * k + (7 + k) * i) % 480 for i in range(33 + k)] for k in range(24)]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
# So small a KV cache has all been in use after a few hundred requests, and does not look like growth.
OPTIONS = ("--enforce-eager", "--kv-cache-memory-bytes", "32M", "--block-size", "32", "--max-num-seqs", "64")
COUNTED = ("assemblies", "evictions", "assembly_bytes", "assembly_seconds", "hits")
GROWTH, SLACK = 1.03, 8.0
"""By what factor and MB memory may be above what it was, and count as flat."""


def trace(seed: int) -> Iterator[Request]:
    """Requests without end, the same for the same seed."""
    chosen = random.Random(seed)
    languages = chosen.sample(range(LANGUAGES), LANGUAGES)
    weights = [1 / rank for rank in range(1, LANGUAGES + 1)]
    while True:
        (language,) = chosen.choices(languages, weights)
        yield Request(f"t{chosen.randrange(TASKS)}+l{language}", chosen.randrange(len(PROMPTS)))


@dataclass
class Run:
    """What the clients were told, and what was seen of the server."""

    clients: Clients
    reloads: Reloads
    samples: list[Sample] = field(default_factory=list)
    bank: Mapping[str, float] = field(default_factory=dict)
    """What the bank has counted meanwhile."""
    alone: Mapping[Key, Reference] = field(default_factory=dict)
    """The answers to what was not always answered the same, once more, when nobody else asked."""
    alive: bool = False
    log: str = ""

    @property
    def told(self) -> Told:
        found: dict[Key, Counter[tuple[int, ...]]] = {}
        for answer in self.clients.answers:
            found.setdefault((answer.request.name, answer.request.prompt), Counter())[answer.tokens] += 1
        return found

    def among_themselves(self) -> Compared:
        """The answers to what was asked more than once."""
        told = {key: answers for key, answers in self.told.items() if answers.total() > 1}
        first = {key: Reference(next(iter(answers)), ()) for key, answers in told.items() if len(answers) == 1}
        return compared(told, {**first, **self.alone})


async def watch(running: Served, samples: list[Sample]) -> None:
    began, pids = time.perf_counter(), (running.engine, running.server.process.pid)
    with suppress(OSError, KeyError):  # of a process that has ended
        while True:
            engine, server = (memory_of(pid).anonymous for pid in pids)
            samples.append(Sample(time.perf_counter() - began, engine, server))
            await asyncio.sleep(1)


async def soak(running: Served, requests: Iterator[Request], clients: int, seconds: float, reloads: Reloads) -> Run:
    run = Run(Clients(running.server.url, PROMPTS, TOKENS, requests), reloads)
    before = counted(running)
    tasks = [asyncio.create_task(each) for each in (watch(running, run.samples), reloads.run(seconds))]
    await run.clients.run(clients, seconds)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    run.alive, run.log = running.server.healthy(), running.server.tail(20)
    if run.alive:
        run.bank = {key: value - before[key] for key, value in counted(running).items()}
        run.alone = {key: ask_alone(running, *key) for key, answers in run.told.items() if len(answers) > 1}
    return run


def counted(running: Served) -> dict[str, float]:
    report = running.server.get("/v1/bank").raise_for_status().json()
    return {key: report[key] for key in COUNTED}


def ask_alone(running: Served, name: str, prompt: int) -> Reference:
    body = {"model": name, "prompt": PROMPTS[prompt], "max_tokens": TOKENS, **judge.ASKED}
    return Reference.of(running.server.post("/v1/completions", body).raise_for_status().json()["choices"][0])


def check_sizes(running: Served, bank: Bank) -> None:
    """Raises RuntimeError where the server's bank counts other bytes than the one on paper."""
    for shown in running.server.get("/v1/compositions").raise_for_status().json()["data"]:
        size = sum(map(bank.bytes, bank.own(bank.family.plan(shown["name"]))))
        if size != shown["bytes"]:
            raise RuntimeError(f"{shown['name']} has {shown['bytes']} bytes in the server's bank, and {size} on paper")


def print_time(report: Report, run: Run) -> list[str]:
    """Says where memory was not flat."""
    tenths = timeline.spans(run.clients.answers, run.samples, 10)
    rows = [(str(number), *tenth.cells) for number, tenth in enumerate(tenths, 1)]
    last = "10th of 2nd", *timeline.ratios(tenths[9], tenths[1])
    report.table("The time in tenths", ("tenth", *timeline.COLUMNS), [*rows, last])
    memory = {"engine": (tenths[1].engine, tenths[9].engine), "API server": (tenths[1].server, tenths[9].server)}
    return [
        f"the {name} had {first:.1f} MB in the second tenth and {last:.1f} MB in the last"
        for name, (first, last) in memory.items()
        if first is not None and last is not None and last > first * GROWTH + SLACK
    ]


def print_bank(report: Report, run: Run, best: Ideal) -> None:
    asked = len(run.clients.sent)
    columns = ("", "requests", "assemblies", "without", "evictions", "assembled, MB", "each, ms", "hits")
    rows = []
    if run.alive:
        made, evicted, size, seconds, hits = (run.bank[key] for key in COUNTED)
        each = 1000 * seconds / made if made else None
        rows = [("the server's", asked, made, 1 - made / asked, evicted, size / 1e6, each, hits)]
    hits = asked - best.assemblies
    paper = "an LRU on paper", asked, best.assemblies, hits / asked, best.evictions, best.bytes / 1e6, None, hits
    report.table("The bank", columns, [*rows, paper])


def print_answers(report: Report, run: Run, stock: Mapping[Key, Reference]) -> list[str]:
    """Says which were wrong."""
    found = {"themselves": run.among_themselves(), "stock vLLM": compared(run.told, stock)}
    rows = [(name, *result.cells) for name, result in found.items()]
    report.table("Answers", ("compared with", *judge.COLUMNS), rows)
    clients, reloads = run.clients, run.reloads
    ended = ("all", len(clients.answers), clients.repeated, len(clients.failures))
    report.table("Requests", ("", "answered", "503 repeated", "failed"), [ended])
    if reloads.found:
        counts = "all", reloads.found["good"], reloads.found["broken"], len(reloads.wrong)
        report.table("Reloads", ("", "good", "broken", "answered wrongly"), [counts])
    return [f"not the answer of {name}: {each}" for name, result in found.items() for each in result.wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--judged", type=int, default=20, help="pairs that stock vLLM is asked for")
    parser.add_argument("--reloads", type=int, default=0, help="how often family.yaml changes, over --seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path, help="a picture of throughput, latency and memory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerloom-soak-") as place:
        root = Path(place)
        experts = {f"t{i}": "task" for i in range(TASKS)} | {f"l{i}": "language" for i in range(LANGUAGES)}
        path = make_family(root, experts=experts, **SHAPE)
        family = Family.load(path)
        bank = Bank(family, Sizes(family))
        some = [family.plan(f"t{task}+l{language}") for task in range(TASKS) for language in range(ROOM)]
        room = sum(map(bank.bytes, set().union(*map(bank.own, some))))
        memory = needed(some, len(some), bank)
        model = sum(map(bank.bytes, bank.own(family.plan("l0"))))
        report = Report(
            args.csv,
            family=f"{TASKS} tasks, {LANGUAGES} languages, {family.depth} layers, {model / 1e6:.2f} MB a model",
            bank=f"{memory / 1e6:.2f} MB; the pages of {ROOM} languages' {len(some)} pairs are {room / 1e6:.2f} of it",
            asked=f"by {args.clients} clients, at most {args.requests} requests or {args.seconds:.0f} s",
            served=f"{' '.join(OPTIONS)} --max-loras {MIXED}, one compute thread",
        )
        requests = itertools.islice(trace(args.seed), args.requests)
        command = layerloom(path, "--max-loras", str(MIXED), "--bank-memory", str(memory), *OPTIONS)
        with served(command, root / "log", on_cores(1)) as running:
            reloads = Reloads(path, running.server.url, args.reloads)
            run = asyncio.run(soak(running, requests, args.clients, args.seconds, reloads))
            if run.alive:
                check_sizes(running, bank)
        names = sorted({name for name, _ in run.told})
        wrong = [f"failed: {failure}" for failure in run.clients.failures] + run.reloads.wrong
        if run.clients.answers:
            wrong += print_time(report, run)
            print_bank(report, run, ideal(bank, (request.name for request in run.clients.sent), room))
            if args.plot is not None:
                title = f"{len(run.clients.answers)} answers of {len(names)} pairs, in a bank for {len(some)}"
                timeline.draw(run.clients.answers, run.samples, args.plot, title)
        stock: dict[Key, Reference] = {}
        for name in random.Random(args.seed).sample(names, min(args.judged, len(names))):
            answers = stock_answers(family, name, PROMPTS, TOKENS, root / "merged" / name)
            stock |= {(name, k): answer for k, answer in enumerate(answers)}
    wrong += print_answers(report, run, stock)
    if not run.alive:
        wrong.append(f"the server is not well any more; the end of its log:\n{run.log}")
    for each in wrong[:20]:
        print("WRONG", each)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
