"""timeline: what a run did over time: throughput, latency and memory, as rows and as a picture."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .clients import Answered
from .report import Cell
from .streams import quantile

WINDOWS = 60
"""Points of the picture's throughput and latency."""


@dataclass(frozen=True)
class Sample:
    """Bytes of anonymous memory, so many seconds after the start."""

    at: float
    engine: int
    server: int


@dataclass(frozen=True)
class Span:
    """A part of the run: its answers, which ended in it, and what memory was like."""

    start: float
    end: float
    answers: Sequence[Answered]
    samples: Sequence[Sample]

    @property
    def rate(self) -> float:
        """Tokens in a second."""
        return sum(len(answer.tokens) for answer in self.answers) / (self.end - self.start)

    def latency(self, share: float) -> float | None:
        """Milliseconds that this share of the answers did not exceed."""
        return 1000 * quantile([answer.seconds for answer in self.answers], share) if self.answers else None

    @property
    def engine(self) -> float | None:
        """MB, the median."""
        return statistics.median(sample.engine for sample in self.samples) / 1e6 if self.samples else None

    @property
    def server(self) -> float | None:
        return statistics.median(sample.server for sample in self.samples) / 1e6 if self.samples else None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """One for each of COLUMNS."""
        return len(self.answers), self.rate, self.latency(0.5), self.latency(0.99), self.engine, self.server


COLUMNS = ("answers", "tok/s", "p50, ms", "p99, ms", "engine, MB", "server, MB")


def spans(answers: Sequence[Answered], samples: Sequence[Sample], count: int) -> list[Span]:
    """The run in `count` parts of the same length."""
    length = max(answer.ended for answer in answers) / count

    def number(at: float) -> int:
        return min(int(at / length), count - 1)

    ended: list[list[Answered]] = [[] for _ in range(count)]
    for answer in answers:
        ended[number(answer.ended)].append(answer)
    seen: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        seen[number(sample.at)].append(sample)
    return [Span(i * length, (i + 1) * length, ended[i], seen[i]) for i in range(count)]


def ratios(last: Span, first: Span) -> tuple[Cell, ...]:
    """Of what two parts are like, column by column; not of how many answers they had."""
    pairs = zip(last.cells[1:], first.cells[1:], strict=True)
    return None, *(a / b if isinstance(a, float) and isinstance(b, float) and b else None for a, b in pairs)


def draw(answers: Sequence[Answered], samples: Sequence[Sample], out: Path, title: str) -> None:
    """Throughput, latency and memory over time; the ending of `out` says which format."""
    from matplotlib.figure import Figure

    parts = spans(answers, samples, WINDOWS)
    middles = [(part.start + part.end) / 2 for part in parts]
    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    rate, latency, memory = figure.subplots(3, 1, sharex=True)
    rate.plot(middles, [part.rate for part in parts])
    rate.set_ylabel("tok/s")
    for share in (0.5, 0.99):
        latency.plot(middles, [part.latency(share) for part in parts], label=f"p{100 * share:.0f}")
    latency.set_ylabel("ms from request to answer")
    memory.plot([sample.at for sample in samples], [sample.engine / 1e6 for sample in samples], label="engine")
    memory.plot([sample.at for sample in samples], [sample.server / 1e6 for sample in samples], label="API server")
    memory.set_ylabel("anonymous memory, MB")
    memory.set_xlabel("seconds")
    for axes in (rate, latency, memory):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in (latency, memory):
        axes.legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(out)
