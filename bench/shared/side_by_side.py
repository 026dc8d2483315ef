"""side_by_side: systems that are running, one load after another, a table of each."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import httpx

from .adding import Adding
from .cores import one_computes
from .judge import Right
from .loads import AGREEMENT, TIMES, Ask, Load, Refused, agreement
from .pictures import PREFIX
from .report import Cell, Report
from .systems import Limits, Setting, System, Unsuited, make_systems

STOCK = ("merged", "base")
COLUMNS = (
    "requests",
    "tok/s",
    "of stock's",
    "CPU, ms a token",
    *TIMES,
    "memory, GB",
    "disk, GB",
    *AGREEMENT,
    "clients late, ms",
)
FAILURES = (Refused, RuntimeError, httpx.HTTPError, OSError)
"""Of a server, which end one system's part and no other's."""


class Comparison:
    """What systems are measured with, what was found, and the report."""

    def __init__(self, report: Report, setting: Setting, right: Right, args: argparse.Namespace) -> None:
        self.report = report
        self.setting = setting
        self.right = right
        self.args = args
        self.rate: float | None = args.rate
        self.adding = Adding()
        self._stock: dict[Load, float] = {}
        self._slow: dict[tuple[str, str, int], str] = {}

    def group(self, names: Sequence[str], counts: Sequence[int]) -> None:
        """All of its systems are running; each load is tried with one after the other."""
        setting = replace(self.setting, mixed=max(counts))
        systems = make_systems(names, setting)
        there = 0
        if not self.args.apart:
            self._stock.clear()
        try:
            for languages in counts:
                for system in list(systems):
                    if system.name == "engines" and languages > self.args.few:
                        self.leave(systems, system, f"{languages} languages and more", f"--few is {self.args.few}")
                        continue
                    self.attempt(systems, system, f"{languages} languages", self.prepare, there, languages)
                there = languages
                for load in loads(self.args, languages):
                    self.measure(systems, load)
                self.report.table("Adding a language, seconds", *self.adding.table)
        finally:
            for system in systems:
                system.close()

    def prepare(self, system: System, there: int, languages: int) -> None:
        """Adds what is not there yet, and asks for everything at once, so that no load has the first batch."""
        print(f"  {system.name}: {languages} languages", file=sys.stderr, flush=True)
        for language in range(there, languages):
            self.adding.note(system.name, system.add(language))
        asks = [Ask(number % languages, 0, 0.0) for number in range(max(self.args.clients, languages))]
        asyncio.run(system.run(Load("closed", "uniform", languages), asks, self.limits, 4))

    def measure(self, systems: list[System], load: Load) -> None:
        """A table of the load, a row for each system."""
        rows: list[list[Cell]] = []
        for system in list(systems):
            print(f"  {load}: {system.name}", file=sys.stderr, flush=True)
            self.attempt(systems, system, str(load), self.row, systems, load, rows)
        if rows:
            self.report.table(f"{PREFIX}{load}", ("system", *COLUMNS), rows)

    def row(self, system: System, systems: Sequence[System], load: Load, rows: list[list[Cell]]) -> None:
        loop = system.name, load.choice, load.languages
        if load.arrival == "poisson" and loop in self._slow:
            raise Unsuited(self._slow[loop])
        asks = load.asks(self.args.requests, len(self.setting.prompts), self.rate or 1.0)
        before = system.computed()
        with one_computes(systems) if self.args.pin else nullcontext():
            driven = asyncio.run(system.run(load, asks, self.limits))
        found = len(driven.answers)
        if found < len(asks) and load.arrival == "closed":
            self._slow[loop] = (
                f"it had begun no more than {found} of {len(asks)} in a closed loop's {self.args.seconds} s"
            )
        if self.rate is None:
            self.rate = self.args.share * driven.rate / self.args.tokens
            self.report.facts["poisson"] = f"{self.rate:.3g} requests a second"
        if system.name in STOCK:
            self._stock.setdefault(load, driven.rate)
        ratio = driven.rate / self._stock[load] if load in self._stock else None
        same: list[Cell] = [None] * len(AGREEMENT)
        if system.judged:
            same = agreement(driven.answers, self.right, self.setting.materials.name)
        sizes = system.memory() / 1e9, system.disk(load.languages) / 1e9
        spent = 1000 * (system.computed() - before) / (found * self.args.tokens)
        rows.append([system.name, found, driven.rate, ratio, spent, *driven.times, *sizes, *same, 1000 * driven.late])

    def attempt(
        self, systems: list[System], system: System, what: str, do: Callable[..., None], *given: object
    ) -> None:
        """Whatever a system cannot do is said in the report, and the others go on."""
        try:
            do(system, *given)
        except Unsuited as reason:
            self.report.facts[f"not measured, {system.name}, {what}"] = str(reason)
        except FAILURES as error:
            self.leave(systems, system, f"{what} and all later", f"{error!r}"[:500])

    def leave(self, systems: list[System], system: System, what: str, reason: str) -> None:
        print(f"{system.name}, {what}: {reason}", file=sys.stderr, flush=True)
        self.report.facts[f"not measured, {system.name}, {what}"] = reason.replace("\n", " ")
        systems.remove(system)
        system.close()

    @property
    def limits(self) -> Limits:
        return Limits(self.args.clients, self.args.seconds, self.rate or 1.0)


def loads(args: argparse.Namespace, languages: int) -> Iterator[Load]:
    for choice in args.choices if languages > 1 else args.choices[:1]:
        for arrival in args.loads:
            yield Load(arrival, choice, languages)
