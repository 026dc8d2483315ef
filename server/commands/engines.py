"""engines: the commands that run an engine. vLLM is imported only when one is called."""

import json
import os
from typing import Annotated

import typer

from .completing import names_of_family
from .console import FamilyPath, err, need_vllm, show
from .progress import load_family


def serve(
    context: typer.Context,
    family: FamilyPath,
    port: Annotated[int, typer.Option(help="port of the HTTP server")] = 8000,
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
) -> None:
    """Serve a family over the OpenAI API.

    Any option of `vllm serve` may follow.
    """
    need_vllm()
    from layerloom.server.options import prepare_environment

    prepare_environment()
    if admin_key:
        os.environ["LAYERLOOM_ADMIN_KEY"] = admin_key
    loaded = load_family(family)
    names = [name.strip() for name in preload.split(",") if name.strip()]
    for name in names:
        loaded.plan(loaded.parse(name, allow_recipes))
    from layerloom.server.http.serve import arguments, run

    options = [*context.args, "--port", str(port)]
    front = {"patience": wait_for_room, "open_metrics": open_metrics, "preload": names}
    run(arguments(loaded, options, allow_recipes, bank_memory, pages, residency, **front))


def generate(
    family: FamilyPath,
    model: Annotated[str, typer.Option(help="a composition, as in math+swahili", autocompletion=names_of_family)],
    prompt: Annotated[list[str], typer.Option(help="a prompt; repeat the option for more")],
    max_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per prompt: model, text, token_ids")] = False,
) -> None:
    """Continue prompts with one composition, greedily."""
    need_vllm()
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }.items():
        os.environ.setdefault(name, value)
    loaded = load_family(family)
    loaded.parse(model)
    with err.status("starting the engine"):
        from layerloom.server import Runtime

        runtime = Runtime(family, enforce_eager=True, disable_log_stats=True)
    with runtime:
        results = runtime.generate(model, prompt, max_tokens=max_tokens)
        canonical = runtime.family.parse(model).name
    for result in results:
        answer = result.outputs[0]
        if as_json:
            print(json.dumps({"model": canonical, "text": answer.text, "token_ids": list(answer.token_ids)}))
        else:
            show(answer.text)
