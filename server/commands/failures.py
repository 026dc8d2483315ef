"""failures: whatever goes wrong in a command, in a line that says what to do next."""

import errno
import shlex
import sys
from typing import Any

USER, OURS, INTERRUPTED, UNREAD = 2, 1, 130, 141
"""Exit statuses: what was given is wrong; something failed; Ctrl-C; whoever read the output has gone."""

NEXT = {
    errno.ENOSPC: "free some room, or write elsewhere",
    errno.EDQUOT: "free some room, or write elsewhere",
    errno.EACCES: "check who may read or write it",
    errno.EPERM: "check who may read or write it",
    errno.EROFS: "write elsewhere",
    errno.EMFILE: "allow more open files: ulimit -n",
    errno.EADDRINUSE: "choose another --port, or end the process that has it",
    errno.EADDRNOTAVAIL: "give a --host that is an address of this machine",
}
TOO_LITTLE = ("can't allocate memory", "out of memory", "Cannot allocate memory")


class Told(Exception):
    """What is wrong with what was given, for people. As ComposeError, which takes a second to import."""


def told(error: BaseException) -> tuple[str, int]:
    """What to say of an exception, in one line where it says one thing, and the exit status."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if "StartFailed" in kinds:
        reason = error.reason or told(error.__cause__)[0]  # type: ignore[attr-defined]
        return f"the server did not start: {reason}\nvLLM's log of it: {error.log}", OURS  # type: ignore[attr-defined]
    if "ComposeError" in kinds or isinstance(error, Told):
        hint = NEXT.get(getattr(error.__cause__, "errno", None) or 0)
        return f"{text}: {hint}" if hint else text, USER
    if isinstance(error, MemoryError) or "OutOfMemoryError" in kinds or any(word in text for word in TOO_LITTLE):
        return f"there is not enough memory ({first_line(text) or 'MemoryError'}). See: layerloom doctor FAMILY", OURS
    if isinstance(error, OSError):
        return of_system(error), USER
    if "ValidationError" in kinds and hasattr(error, "errors"):
        return of_options(error), USER
    if "torchvision" in text:
        return f"{first_line(text)}: layerloom doctor says what does not fit", OURS
    if isinstance(error, ModuleNotFoundError):
        return (
            f"the Python package {(error.name or '').partition('.')[0]} is missing: {text}. See: layerloom doctor",
            OURS,
        )
    if isinstance(error, ValueError | KeyError | TypeError) and "vllm" in sys.modules:
        # What vLLM says of its options.
        return text or type(error).__name__, OURS
    return f"{type(error).__name__}: {first_line(text) or 'no reason is given'}. {how_to_see()}", OURS


def of_system(error: OSError) -> str:
    where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    said = f"{where}: {error.strerror}" if where and error.strerror else first_line(str(error))
    hint = NEXT.get(error.errno or 0)
    return f"{said}: {hint}" if hint else said


def of_options(error: Any) -> str:
    """What pydantic finds wrong with vLLM's options."""
    found = []
    for each in error.errors():
        where = ".".join(str(part) for part in each["loc"] if not str(part).startswith("function-"))
        reason = first_line(each["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, "))
        found.append(f"{where}: {reason}" if where else reason)
    return "\n".join(dict.fromkeys(found))


def how_to_see() -> str:
    shown = shlex.join(["layerloom", "--debug", *sys.argv[1:]])
    return f"Where it comes from: {shown}" if len(shown) < 300 else "Where it comes from: LAYERLOOM_DEBUG=1"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
