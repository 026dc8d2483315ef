"""engines: the commands that run an engine. vLLM is imported only when one is called."""

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from layerloom.server.versions import vllm_version

from .completing import names_of_family
from .console import FamilyPath, err, hush_vllm, need_vllm, say, show
from .progress import load_family

HELP = "--vllm-help"


class Serve(TyperCommand):
    """Shows vLLM's options where that is asked for, by group or not; no family is needed for it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for index, word in enumerate(args):
            if word.partition("=")[0] == HELP:
                following = args[index + 1] if index + 1 < len(args) else ""
                group = word.partition("=")[2] or ("" if following.startswith("-") else following)
                show_vllm_options(group)
        return super().parse_args(ctx, args)


def show_vllm_options(group: str) -> NoReturn:
    need_vllm()
    hush_vllm()
    from layerloom.server.http.serve import parser

    shown = parser(
        "vLLM's options, which `layerloom serve FAMILY` takes too. To see those of a group, those whose name "
        f"has a word in it, or all of them: layerloom serve {HELP} GROUP|WORD|all"
    )
    shown.parse_args([f"--help={group}" if group else "--help"])
    raise typer.Exit


def serve(
    context: typer.Context,
    family: FamilyPath,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the HTTP server")] = 8000,
    allow_recipes: Annotated[
        bool, typer.Option("--allow-recipes", help="accept options in names: math+swahili@bottom=6,top=2")
    ] = False,
    bank_memory: Annotated[
        str | None, typer.Option(help="memory for compositions, as in 8G or 512M; by default what the family's need")
    ] = None,
    pages: Annotated[
        str | None, typer.Option(help="packed (for a CPU's matrix products) or arena (what a GPU uses)")
    ] = None,
    residency: Annotated[
        str | None, typer.Option(help="assembled, or delta: keep lossy archives and LoRA adapters packed, in an arena")
    ] = None,
    wait_for_room: Annotated[
        float, typer.Option(min=0, help="seconds a request waits while others use all bank memory, before a 503")
    ] = 30.0,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="leave /metrics open where --api-key is set")
    ] = False,
    preload: Annotated[
        str, typer.Option(help="compositions to be there before the first request: math+swahili,tutor")
    ] = "",
    admin_key: Annotated[
        str, typer.Option(envvar="LAYERLOOM_ADMIN_KEY", help="asked for by what loads, unloads and reloads")
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="show all of vLLM's log, with every request")] = False,
    vllm_help: Annotated[
        bool, typer.Option(HELP, help=f"show vLLM's options: {HELP} GROUP, or all; without either the groups")
    ] = False,
) -> None:
    """Serve a family over the OpenAI API.

    As in: layerloom serve demo. Any option of `vllm serve` may follow: --vllm-help shows them.
    """
    need_vllm()
    from layerloom.server.http.startup import Startup, wants_log

    with Startup(verbose or wants_log(context.args)) as startup:
        if not err.is_terminal:
            startup.step("reading the family")
        loaded = load_family(family)
        names = [name.strip() for name in preload.split(",") if name.strip()]
        for name in names:
            loaded.plan(loaded.parse(name, allow_recipes))
        if admin_key:
            os.environ["LAYERLOOM_ADMIN_KEY"] = admin_key
        look_at_port(context.args, port)
        startup.step(f"starting vLLM {vllm_version()}")
        startup.follow()
        from layerloom.server.options import prepare_environment

        prepare_environment()
        from layerloom.server.http.serve import arguments, refuse, run

        options = [*context.args, "--port", str(port)]
        front = {"patience": wait_for_room, "open_metrics": open_metrics, "preload": names}
        args = arguments(loaded, options, allow_recipes, bank_memory, pages, residency, refuse, **front)
        run(loaded, args, startup)
    say("stopped")


def look_at_port(options: Sequence[str], port: int) -> None:
    """Raises OSError where nobody could listen there, before vLLM takes its time to find that out."""
    words = [part for option in options for part in option.split("=", 1)]
    if {"--uds", "--headless"} & {*words}:
        return
    host = words[words.index("--host") + 1] if "--host" in words[:-1] else ""
    with suppress(socket.gaierror), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{host or '*'}:{port}") from error


def generate(
    family: FamilyPath,
    model: Annotated[str, typer.Option(help="a composition, as in math+swahili", autocompletion=names_of_family)],
    prompt: Annotated[list[str], typer.Option(help="a prompt; repeat the option for more")],
    max_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON object a line: model, text, token_ids")] = False,
) -> None:
    """Continue prompts with one composition, greedily.

    In an engine of its own, of texts as they are: chat has the chat template. As in: layerloom generate demo --model
    math+swahili --prompt "Asha ana ndizi 5."
    """
    need_vllm()
    hush_vllm()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    loaded = load_family(family)
    loaded.parse(model)
    with err.status("starting the engine"):
        from layerloom.server import Runtime

        runtime = Runtime(family, enforce_eager=True, disable_log_stats=True)
    with runtime:
        results = runtime.generate(model, prompt, max_tokens=max_tokens)
    for result in results:
        answer = result.outputs[0]
        name = result.lora_request.lora_name if result.lora_request else "base"
        if as_json:
            print(json.dumps({"model": name, "text": answer.text, "token_ids": list(answer.token_ids)}))
        else:
            show(answer.text)
