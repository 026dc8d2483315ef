"""report: tables in Markdown on the screen and in one CSV file, below what they were measured on."""

import csv
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")
HUGE = Path("/sys/kernel/mm/transparent_hugepage")

Cell = str | float | None
"""None where there is nothing to say."""


class Report:
    """Prints at once what it is told, and keeps the tables: a line of the CSV file is one number of one table."""

    def __init__(self, csv: Path | None, **said: object) -> None:
        self.csv = csv
        self.facts = {**facts(), **{name: str(value) for name, value in said.items()}}
        self._lines: list[tuple[str, str, str, Cell]] = []
        for name, fact in self.facts.items():
            print(f"- {name}: {fact}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """`rows` begin with what names them, in as many cells as are text."""
        print(f"\n{title}\n\n| {' | '.join(columns)} |")
        print(f"|{'|'.join('---' if isinstance(cell, str) else '---:' for cell in rows[0])}|")
        for row in rows:
            print(f"| {' | '.join(map(shown, row))} |", flush=True)
            label = " ".join(cell for cell in row if isinstance(cell, str))
            self._lines += [
                (title, label, column, cell)
                for column, cell in zip(columns, row, strict=True)
                if isinstance(cell, int | float)
            ]
        self._write()

    def _write(self) -> None:
        if self.csv is None:
            return
        with self.csv.open("w", newline="") as file:
            file.writelines(f"# {name}: {fact}\n" for name, fact in self.facts.items())
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("table", "row", "column", "value"))
            writer.writerows((*line, f"{number:.5g}") for *line, number in self._lines)


def written(file: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The facts of a CSV file of a report, and its lines: table, row, column, value."""
    lines = file.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def command() -> str:
    """How this script was called, from the project's root."""
    threads = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    return shlex.join([*threads, "python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most, as tables have them."""
    return statistics.median(values), min(values), max(values)


def shown(cell: Cell) -> str:
    """A cell for people: three digits or so."""
    if cell is None:
        return "-"
    if isinstance(cell, str | int):
        return str(cell)
    return f"{cell:,.{0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 2}f}"


def facts() -> dict[str, str]:
    """What numbers of this machine depend on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "command": command(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{processor()}, {len(os.sched_getaffinity(0))} cores; load before: {os.getloadavg()[0]:.1f}",
        "memory": f"{memory / 1e9:.1f} GB, pages of {resource.getpagesize()} bytes, huge ones: {huge_pages()}",
        "versions": f"Python {platform.python_version()}, torch {version('torch')}, vLLM {vllm_version()}",
    }


def commit() -> str:
    """The commit that is checked out, and whether tracked files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "HEAD") or "unknown") + (", with changes" if changed else "")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def huge_pages() -> str:
    """The kernel's choice in [], of when huge pages are used and of when they are made room for."""
    files = [HUGE / name for name in ("enabled", "defrag")]
    return ", ".join(f"{file.name} {file.read_text().strip()}" for file in files if file.exists()) or "none"


def vllm_version() -> str:
    for package in ("vllm-cpu", "vllm"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"
