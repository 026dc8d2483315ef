"""app: what `layerloom serve` serves, as a part of somebody else's program."""

import asyncio
import json
import os
from argparse import Namespace, _AppendAction
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
from vllm.logger import init_logger
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import set_env_var
from vllm.v1.engine.async_llm import AsyncLLM

from layerloom.composer import ComposeError, Family
from layerloom.composer.family.names import nearest
from layerloom.server.options import RUNTIME_LOADING, prepare_environment
from layerloom.server.runtime.starting import engine_ended, engine_started

from .front import ADMIN_KEY
from .serve import arguments

logger = init_logger("vllm.layerloom")

THE_HOSTS = ("host", "port", "uds", "api_server_count", "headless")
"""Options of vLLM's that say how a process listens: here that is for the program that the app is part of."""

NOT_STARTED = (
    "the engine has not been started: the program that mounts this app must run its lifespan, as in "
    "FastAPI(lifespan=app.router.lifespan_context)"
)


def create_app(
    family: str | Path,
    *,
    allow_recipes: bool = False,
    bank_memory: int | str | None = None,
    pages: str | None = None,
    residency: str | None = None,
    preload: Sequence[str] = (),
    api_key: str | Sequence[str] = (),
    admin_key: str = "",
    wait_for_room: float = 30.0,
    open_metrics: bool = False,
    wait: bool = True,
    **options: Any,
) -> FastAPI:
    """The routes of `layerloom serve` as a FastAPI app: vLLM's and layerloom's, to run alone or to mount in another.

    >>> llm = create_app("demo", kv_cache_memory_bytes=2**30, api_key="secret")
    >>> app = FastAPI(lifespan=llm.router.lifespan_context)
    >>> app.mount("/llm", llm)  # an OpenAI client's base_url is then http://…/llm/v1

    The app's lifespan starts the engine, in a process of its own, and ends it. Starlette runs no lifespan of an app
    that is mounted, so the program's own must; one that does more enters it: `async with
    llm.router.lifespan_context(app): …`. Run alone (`uvicorn module:llm`) the app does by itself. With `wait=False`
    the lifespan does not wait for the engine, so that the rest of the program serves meanwhile.

    Until the engine is there, and when it has died, requests are answered with 503 and the reason, /health too; the
    program lives on. Signals and the exit status are the program's. Each process that runs the app has an engine, a
    program may have several apps, and a script needs `if __name__ == "__main__":`.

    `options` are those of `vllm serve`, as Python has them: max_model_len=4096, enable_auto_tool_choice=True. The
    others are those of `layerloom serve`. /metrics has all of the process; of several apps, vLLM's of the last alone.
    Raises ComposeError where the family or an option does not fit.
    """
    prepare_environment()
    loaded = Family.load(family)
    for name in preload:
        loaded.plan(loaded.parse(name, allow_recipes))
    keys = [api_key] if isinstance(api_key, str) else list(api_key)
    front = {"patience": wait_for_room, "open_metrics": open_metrics, "preload": list(preload), "embedded": True}
    memory = None if bank_memory is None else str(bank_memory)
    with set_env_var(ADMIN_KEY, admin_key or os.environ.get(ADMIN_KEY, "")):
        # Both read that variable, which is of one process and may be of several apps.
        given = words({**options, "api_key": [key for key in keys if key]})
        args = arguments(loaded, given, allow_recipes, memory, pages, residency, refuse, **front)
        try:
            ServeSubcommand().validate(args)
        except (TypeError, ValueError) as error:
            raise ComposeError(f"create_app: {error}") from error
        # Another app of this program may run already, which has set it.
        with set_env_var(RUNTIME_LOADING, "0"):
            app = built(args)
    app.router.lifespan_context = Embedded(app, loaded, args, wait).lifespan
    return app


class Embedded:
    """An app's engine, which is there as long as the app's lifespan."""

    def __init__(self, app: FastAPI, family: Family, args: Namespace, wait: bool) -> None:
        self.app = app
        self.family = family
        self.args = args
        self.wait = wait
        self._idle = app.state
        self._idle.layerloom = SimpleNamespace(ending=NOT_STARTED)
        self._running = False

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        if self._running:
            raise RuntimeError("the lifespan of this app runs already: one program has it, once")
        self._running = True
        starting = asyncio.ensure_future(self._start())
        try:
            if self.wait:
                await starting
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._stop()
            self._running = False

    async def _start(self) -> None:
        self._idle.layerloom.ending = "the engine is starting"
        try:
            _, engine = await engine_started(lambda: (self.family, AsyncEngineArgs.from_cli_args(self.args)))
            # Requests see all of it or nothing.
            state = State({**self._idle._state, "server": SimpleNamespace(should_exit=False, config=SimpleNamespace())})
            try:
                await engine.reset_mm_cache()
                await fill(engine, state, self.args)
            except BaseException:
                await engine_ended(engine)
                raise
        except BaseException as error:
            self._idle.layerloom.ending = "the engine did not start"
            if isinstance(error, Exception) and not self.wait:
                logger.exception("layerloom: the engine did not start")
            raise
        self.app.state = state

    async def _stop(self) -> None:
        state, self.app.state = self.app.state, self._idle
        self._idle.layerloom.ending = NOT_STARTED
        if state is not self._idle:
            engine: AsyncLLM = state.engine_client
            await engine_ended(engine, self.args.shutdown_timeout)
            tasks = {*state.layerloom_watch, state.layerloom_series}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def built(args: Namespace) -> FastAPI:
    """The routes, which take no engine."""
    try:
        from vllm.entrypoints.launchers.app import build_app
    except ImportError:  # older versions have it there
        from vllm.entrypoints.openai.api_server import build_app
    app: FastAPI = build_app(args, ("generate",))
    return app


async def fill(engine: AsyncLLM, state: State, args: Namespace) -> None:
    """What the routes ask."""
    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    except ImportError:
        from vllm.entrypoints.openai.api_server import init_app_state
    await init_app_state(engine, state, args, await engine.get_supported_tasks())


def words(options: Mapping[str, Any]) -> list[str]:
    """Options as vLLM's command line has them. Raises ComposeError for what is none of them."""
    known = {action.dest: action for action in make_arg_parser(FlexibleArgumentParser())._actions}
    found = []
    for name, value in options.items():
        if name in THE_HOSTS:
            raise ComposeError(f"create_app: {name} is for the server that the app runs in: leave it out")
        if name not in known:
            meant = nearest(name, known)
            hint = f" Did you mean {meant!r}?" if meant else ""
            raise ComposeError(f"create_app: {name!r} is no option of `vllm serve`.{hint}")
        option, action = f"--{name.replace('_', '-')}", known[name]
        if value is True:
            found.append(option)
        elif value is False:
            # Where there is no such form, leaving it out is what False means.
            found += [form for form in action.option_strings if form == option.replace("--", "--no-", 1)]
        elif isinstance(value, list | tuple) and action.nargs in ("*", "+"):
            found += [option, *map(str, value)] if value else []
        elif isinstance(value, list | tuple) and isinstance(action, _AppendAction):
            found += [f"{option}={item}" for item in value]
        elif value is not None:
            found.append(f"{option}={json.dumps(value) if isinstance(value, list | tuple | dict) else value}")
    return found


def refuse(message: str) -> NoReturn:
    raise ComposeError(f"create_app: {message}")
