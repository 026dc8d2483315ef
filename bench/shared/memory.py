"""memory: what processes have of it, as the kernel counts it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: its own, of files that it maps, and of what it shares as files that are in memory alone."""

    anonymous: int
    mapped: int
    shared: int

    @property
    def resident(self) -> int:
        return self.anonymous + self.mapped + self.shared

    def __sub__(self, other: "Memory") -> "Memory":
        return Memory(self.anonymous - other.anonymous, self.mapped - other.mapped, self.shared - other.shared)


def memory_of(pid: int) -> Memory:
    """Of a process, pages that others map, too, counted in full."""
    anonymous = fields(Path(f"/proc/{pid}/smaps_rollup"))["Anonymous"]
    status = fields(Path(f"/proc/{pid}/status"))
    return Memory(anonymous, status["RssFile"], status["RssShmem"])


def proportional(pids: Iterable[int]) -> int:
    """Bytes that processes have together: a page that several map is counted once among them all."""
    return sum(fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss"] for pid in pids)


def forget_peak(pid: int) -> None:
    """Lets `peak` count from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """The most bytes that a process had since `forget_peak`."""
    return fields(Path(f"/proc/{pid}/status"))["VmHWM"]


def fields(file: Path) -> dict[str, int]:
    """The lines of a file of /proc that give bytes, which it does in kB."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) == 3 and words[2] == "kB"}
