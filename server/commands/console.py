"""console: what all commands share."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from layerloom.server.versions import trouble_with_vllm

from .completing import names_of_family
from .failures import Told

out, err = Console(), Console(stderr=True)

FamilyPath = Annotated[Path, typer.Argument(metavar="FAMILY", help="family.yaml, or the directory that holds it")]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="a composition, as in math+swahili", autocompletion=names_of_family),
]
PLOT = typer.Option(help="draw a heat map of change over layers and modules into this file: .png, .svg or .pdf")
STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


def show(text: str) -> None:
    """A line of the result, as it is."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def say(text: str, kind: str = "") -> None:
    """A line beside the result."""
    parts = [(f"{kind}: ", STYLES[kind])] if kind else []
    err.print(Text.assemble(*parts, text), highlight=False, soft_wrap=True)


@contextmanager
def compose_warnings() -> Iterator[None]:
    """Shows what composer warns of in a line each; other warnings as Python does."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if category.__name__ == "ComposeWarning":
                say(str(message), "warning")
            else:
                shown(message, category, *rest)

        warnings.showwarning = tell
        yield


def need_vllm() -> None:
    """Raises Told, with what to install, where no vLLM is that layerloom works with."""
    trouble = trouble_with_vllm()
    if trouble is not None:
        raise Told(trouble)


def hush_vllm() -> None:
    """Has vLLM, before it is imported, log errors alone, and to stderr, but where the environment says otherwise."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level.upper())
    warnings.filterwarnings("ignore", category=FutureWarning)
