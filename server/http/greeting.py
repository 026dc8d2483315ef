"""greeting: what a server says when it is up: what it serves, where, and how to ask it."""

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from layerloom.composer import Family
from layerloom.composer.pages.arena import megabytes

WIDTH = 80
MOST_NAMES = 60
HELLO = "Hello!"


def greeting(family: Family, auto: Sequence[str], args: Namespace, keys: bool, said: dict[str, Any]) -> str:
    """`auto` are names such as math+auto, `keys` whether requests need one, `said` what the server says of itself."""
    names = [*family.names(), *auto]
    shown = names[:MOST_NAMES]
    more = f" and {len(names) - len(shown)} more: GET /v1/models" if len(names) > len(shown) else ""
    url = address(args)
    settings = args.additional_config["layerloom"]
    where = f", on each of {said['workers']} workers" if said["workers"] > 1 else ""
    bank = f"{megabytes(said['budget'])} for compositions{where}; {said['resident'] or 'none'} made yet"
    rows = {
        "models": f"{len(names)}: {', '.join(shown)}{more}",
        "bank": f"{bank} ({settings['pages']} pages)",
        **({} if args.disable_fastapi_docs else {"API": f"{url}/docs"}),
        "studio": f"{url}/studio",
    }
    lines = ["", f"{family.root.name} is served at {url}  (ready in {said['seconds']:.0f} s)", ""]
    for label, text in rows.items():
        first, *rest = wrap(text, WIDTH - 10, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {label:<8}{first}", *(f"{'':10}{line}" for line in rest)]
    return "\n".join([*lines, "", *curl(url, args, asked_first(family), family.example or HELLO, keys), ""])


def joined(family: Family, args: Namespace) -> str:
    """What a process says that has engines and no server."""
    count = args.data_parallel_size_local or 1
    head = f"{args.data_parallel_address or 'the first host'}"
    return f"{count} engine{'s' if count > 1 else ''} of {family.root.name} up, for the server at {head}"


def asked_first(family: Family) -> str:
    """A composition that says what this is about."""
    return next((name for name in family.names() if "+" in name), family.names()[-1])


def curl(url: str, args: Namespace, model: str, question: str, keys: bool) -> list[str]:
    """A command to try, in lines that a shell puts together."""
    body = {"model": model, "temperature": 0, "max_tokens": 100, "messages": [{"role": "user", "content": question}]}
    socket = f"--unix-socket {shlex.quote(args.uds)} " if args.uds else ""
    parts = [
        f"curl {socket}{url}/v1/chat/completions -H 'Content-Type: application/json'",
        *(['-H "Authorization: Bearer $API_KEY"'] if keys else []),
        f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
    ]
    return ["  " + line for line in " \\\n    ".join(parts).split("\n")]


def address(args: Namespace) -> str:
    """Where this machine reaches it."""
    if args.uds:
        return "http://localhost"
    host = args.host or ""
    if host in ("", "0.0.0.0", "::"):
        host = "localhost"
    scheme = "https" if args.ssl_keyfile and args.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{args.port}"
