"""serve: vLLM's own server, started over a family."""

import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# From here, and not from where it is defined: that place has moved between the versions.
from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser, human_readable_int

from layerloom.composer import ComposeError, Family
from layerloom.server.options import engine_options

from . import lifetime
from .front import ADMIN_KEY, api_keys
from .watching import forward_hangups

UNSET = object()

DRAIN = 30
"""Seconds that requests have to end in when the server is told to; vLLM's own default is to cut them off."""


def arguments(
    family: Family,
    options: Sequence[str],
    allow_recipes: bool,
    bank_memory: str | None,
    pages: str | None,
    residency: str | None,
    refuse: Callable[[str], NoReturn] | None = None,
    **front: Any,
) -> Any:
    """The arguments of vLLM's server: its own `options`, and what layerloom makes of them. Raises ComposeError.

    `front` are the settings of what stands before its routes: patience, open_metrics, preload. `refuse` raises what is
    wrong with an option; without it the process ends with its usage.
    """
    parser = make_arg_parser(FlexibleArgumentParser(prog="layerloom serve FAMILY"))
    if refuse is not None:
        parser.error = refuse
    parser.set_defaults(shutdown_timeout=DRAIN)
    args = parser.parse_args(list(options))
    # Not what differs from vLLM's defaults: layerloom has others.
    unset = Namespace(**dict.fromkeys(vars(args), UNSET))
    given = {name: value for name, value in vars(parser.parse_args(list(options), unset)).items() if value is not UNSET}
    memory = None if bank_memory is None else memory_of(bank_memory)
    for name, value in engine_options(family, allow_recipes, given, memory, pages, residency).items():
        setattr(args, name, value)
    args.additional_config["layerloom"] |= front
    admin, keys = os.environ.get(ADMIN_KEY), api_keys(args)
    if admin and keys:
        # Who may change things may also ask.
        args.api_key = [*keys, admin]
    args.model_tag = None
    return args


def run(args: Any) -> None:
    """Serves until it is told to end. When the engine has died the process ends here, and its status says so."""
    forward_hangups()
    ServeSubcommand().validate(args)
    ServeSubcommand.cmd(args)
    if lifetime.failed:
        # Python's own end can hang on what a dead engine has left behind.
        lifetime.exit_now(1)


def memory_of(text: str) -> int:
    """Bytes, written as vLLM's own options take them: 8g is 8·10^9, 8G is 8·2^30."""
    try:
        return human_readable_int(text)
    except (ValueError, ArgumentTypeError) as error:
        raise ComposeError(
            f"--bank-memory {text}: is no amount of memory; write 8G, 512M or a number of bytes"
        ) from error
