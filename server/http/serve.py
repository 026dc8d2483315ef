"""serve: vLLM's own server, started over a family."""

import os
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

# From here, and not from where it is defined: that place has moved between the versions.
from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser, human_readable_int

from layerloom.composer import ComposeError, Family
from layerloom.composer.family.names import nearest
from layerloom.server.languages import Languages
from layerloom.server.options import RUNTIME_LOADING, engine_options

from . import lifetime
from .front import ADMIN_KEY, api_keys
from .greeting import greeting, joined
from .interrupts import end_at_once, exit_now, make_end, watch_for_second
from .startup import Startup
from .watching import forward_hangups

UNSET = object()
OPTIONS = ("--allow-recipes", "--bank-memory", "--wait-for-room", "--open-metrics", "--preload", "--admin-key")
"""Those of layerloom's own that are easily misspelt, and then taken for vLLM's."""

DRAIN = 30
"""Seconds that requests have to end in when the server is told to; vLLM's own default is to cut them off."""


def parser(description: str = "") -> FlexibleArgumentParser:
    """Of vLLM's options."""
    usage = "layerloom serve FAMILY [options]"
    made = make_arg_parser(FlexibleArgumentParser(prog="layerloom serve", usage=usage, description=description))
    made.set_defaults(shutdown_timeout=DRAIN)
    return made


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
    known = parser()
    if refuse is not None:
        known.error = refuse
    args = known.parse_args(list(options))
    # Not what differs from vLLM's defaults: layerloom has others.
    unset = Namespace(**dict.fromkeys(vars(args), UNSET))
    given = {name: value for name, value in vars(known.parse_args(list(options), unset)).items() if value is not UNSET}
    memory = None if bank_memory is None else memory_of(bank_memory)
    args.given = sorted(given)
    for name, value in engine_options(family, allow_recipes, given, memory, pages, residency).items():
        setattr(args, name, value)
    args.additional_config["layerloom"] |= front
    admin, keys = os.environ.get(ADMIN_KEY), api_keys(args)
    if admin and keys:
        # Who may change things may also ask.
        args.api_key = [*keys, admin]
    args.model_tag = None
    return args


def refuse(message: str) -> NoReturn:
    """What argparse calls, with what it finds wrong."""
    unknown = re.findall(r"--[\w.-]+", message.partition("unrecognized arguments:")[2])
    known = [option for action in parser()._actions for option in action.option_strings]
    meant = nearest(unknown[0], [*known, *OPTIONS]) if unknown else None
    hint = f" (did you mean {meant}?)" if meant else ""
    raise ComposeError(f"{message}{hint}. vLLM's options: layerloom serve --vllm-help")


def run(family: Family, args: Any, startup: Startup) -> None:
    """Serves until it is told to end. When the engine has died the process ends here, and its status says so."""
    if not startup.show_log and "uvicorn_log_level" not in args.given:
        args.uvicorn_log_level = "warning"
    auto = Languages(family).names
    keys = bool(api_keys(args))
    startup.greeting = lambda said: greeting(family, auto, args, keys, said)
    if args.headless:
        startup.engines = args.data_parallel_size_local or 1
        startup.greeting = lambda said: joined(family, args)
    forward_hangups()
    watch_for_second()
    end_at_once(startup.stop)
    lifetime.end_after_engines(lambda: startup.processes)
    # As vLLM's own command has it: what has threads is not to be forked.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ[RUNTIME_LOADING] = "0"
    ServeSubcommand().validate(args)
    with suppress(SystemExit, KeyboardInterrupt):  # vLLM's, when it is told to end
        ServeSubcommand.cmd(args)
    make_end(startup.processes)
    if lifetime.failed:
        # Python's own end can hang on what a dead engine has left behind.
        exit_now(1)


def memory_of(text: str) -> int:
    """Bytes, written as vLLM's own options take them: 8g is 8·10^9, 8G is 8·2^30."""
    try:
        return human_readable_int(text)
    except (ValueError, ArgumentTypeError) as error:
        raise ComposeError(
            f"--bank-memory {text}: is no amount of memory; write 8G, 512M or a number of bytes"
        ) from error
