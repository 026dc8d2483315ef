"""causes: why a server did not start, found in the log of its processes."""

import re

PREFIX = re.compile(r"^(\(.+? pid=\d+\)) ?(?:(?:ERROR|CRITICAL) \S+ \S+ \[\S+\] ?)?")
TRACEBACK = "Traceback (most recent call last):"
END = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*): ?(.*)$")
"""The last line of one: the exception's class and what it says."""

RECORD = re.compile(r"^\(.+? pid=\d+\) (?:DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
AFTERWARDS = ("root cause", "EngineDeadError", "initialization failed")
"""Of what is raised because something else has been."""

MOST = 12
"""Lines of what an exception says."""


def cause_in(log: str) -> str | None:
    """What the first exception says that is not raised because of another; None where there is none."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if not line.endswith(TRACEBACK):
            continue
        found = end_of(lines, number + 1, owner(line))
        if found and not any(words in found for words in AFTERWARDS):
            return found
    return None


def owner(line: str) -> str:
    """Which process has said it."""
    found = PREFIX.match(line)
    return found[1] if found else ""


def end_of(lines: list[str], start: int, process: str) -> str:
    """What the exception says whose traceback goes on at a line."""
    said: list[str] = []
    for line in lines[start:]:
        if owner(line) != process:
            continue
        text = PREFIX.sub("", line)
        if not said:
            last = END.match(text)
            if last:
                said.append(text if last[1] in ("AssertionError", "KeyError") or not last[2] else last[2])
        elif (RECORD.match(line) and not text.strip()) or len(said) == MOST or not text.strip() or is_other(line):
            break
        else:
            said.append(text)
    return "\n".join(said)


def is_other(line: str) -> bool:
    """Whether another record begins, or what a traceback says before the next one."""
    text = PREFIX.sub("", line)
    return text.startswith(("During handling", "The above exception", TRACEBACK, "Process ")) or " INFO " in line[:40]
