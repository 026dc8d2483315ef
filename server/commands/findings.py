"""findings: what a look at a machine or a family has found."""

from dataclasses import dataclass

FINE, NOTE, STOP = "fine", "note", "stop"
"""Nothing to do; something to know; something that would keep a family from being served."""


@dataclass(frozen=True)
class Finding:
    """`next` says what to do about it."""

    level: str
    about: str
    text: str
    next: str = ""


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
