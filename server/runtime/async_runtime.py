"""async_runtime: a family for asyncio programs."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.renderers import ChatParams
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind
from vllm.utils.mistral import is_mistral_tokenizer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from layerloom.composer import ComposeError, Family, Plan
from layerloom.server.http.leases import Leases, Unavailable
from layerloom.server.http.living import Living
from layerloom.server.languages import turns_of
from layerloom.server.options import engine_options, lora_request
from layerloom.server.voices import SPEAKING, Voices

from .answer import Answer
from .asked import plain, sampling_params, turns_in
from .starting import engine_ended, engine_started

Answers = AsyncGenerator[Answer, None]

UNWRITABLE = "the answer cannot be written in the form of structured_outputs: at some place no token of this model fits"


class AsyncRuntime:
    """vLLM's AsyncLLM over a family: answers that stream, any number at once, in one batch.

    >>> async with AsyncRuntime("demo", kv_cache_memory_bytes=2**30) as runtime:
    ...     chat = [{"role": "user", "content": "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"}]
    ...     async for part in runtime.chat("math+auto", chat, max_tokens=64):
    ...         print(part.text, end="", flush=True)  # part.model says which composition answers
    ...     answer = await runtime.answer("math+swahili", chat, max_tokens=64)
    ...     print(answer.text)

    `bank_memory` is in bytes; it, `pages`, `residency` and `preload` are the options of `layerloom serve`, and
    `options` vLLM's own engine arguments. A request waits for room for its composition for `wait_for_room` seconds
    (None: as long as it takes), and then raises ComposeError. Entering raises that when the family or an option does
    not fit.

    The engine has a process of its own, which ends with this one: a script needs `if __name__ == "__main__":`, an
    event loop never waits for a step of the engine, and a program may have several runtimes. One belongs to the event
    loop that has entered it.

    Who reads slowly gets larger parts and holds up nobody. Leaving the loop, cancelling its task or closing the
    stream (contextlib.aclosing) aborts the request. What is wrong with a request is a ValueError (so is UnknownName)
    for who made it; when the engine has died all callers, then and later, get RuntimeError.
    """

    def __init__(
        self,
        family: str | Path,
        *,
        allow_recipes: bool = True,
        bank_memory: int | None = None,
        pages: str | None = None,
        residency: str | None = None,
        preload: Sequence[str] = (),
        wait_for_room: float | None = None,
        **options: Any,
    ) -> None:
        self._path = family
        self._settings = {"preload": list(preload), "patience": wait_for_room}
        self._arguments = (allow_recipes, {"disable_log_stats": True, **options}, bank_memory, pages, residency)
        self._engine: AsyncLLM | None = None
        self._over = "it has not been entered"

    async def __aenter__(self) -> "AsyncRuntime":
        if self._engine is not None:
            raise RuntimeError("this runtime has been entered already")
        family, self._engine = await engine_started(self._describe)
        try:
            await self._engine.reset_mm_cache()
            self._leases = Leases(self._engine, self._settings["patience"])
            voices = Voices(family, self._engine)
            settings = self._engine.vllm_config.additional_config["layerloom"] | self._settings
            self._living = Living(settings, family, self._leases, voices, 0, 1)
            await asyncio.to_thread(self._living.languages.prepare)
            await self._living.preload()
        except BaseException:
            await self.close()
            raise
        self._over = ""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the engine and its processes. Whoever still waits, and later calls, get RuntimeError."""
        engine, self._engine = self._engine, None
        if engine is not None:
            self._over = "it was closed"
            self._leases.closed = True
            await engine_ended(engine)

    @property
    def engine(self) -> AsyncLLM:
        """vLLM's own object, which knows nothing of names."""
        if self._engine is None or self._engine.errored:
            raise self._ended()
        return self._engine

    @property
    def family(self) -> Family:
        """What names mean."""
        return self._living.family

    async def reload(self) -> bool:
        """Loads the family's files anew and switches to it; whether anything is different.

        Raises ComposeError with what is wrong, and then nothing has changed.
        """
        return await asyncio.shield(asyncio.ensure_future(self._living.reload()))

    def generate(self, model: str, prompt: Any, params: SamplingParams | None = None, **sampling: Any) -> Answers:
        """Continues a prompt: each Answer is the text since the one before.

        `params` is vLLM's SamplingParams, `sampling` its fields; structured_outputs may be a mapping, as in
        {"json": schema}. A prompt is a text, or any other that vLLM takes. Unknown names raise UnknownName at once.
        """
        return self._continuation(model, prompt, params, sampling, RequestOutputKind.DELTA)

    async def complete(self, model: str, prompt: Any, params: SamplingParams | None = None, **sampling: Any) -> Answer:
        """The same as one Answer; where `n` were asked for `output.outputs` has them all."""
        return await first(self._continuation(model, prompt, params, sampling, RequestOutputKind.FINAL_ONLY))

    def chat(
        self,
        model: str,
        messages: Sequence[Any],
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Answers:
        """The answer to a conversation, a list of {"role": …, "content": …}; the rest is as in `generate`.

        `template` are arguments of vLLM's LLM.chat, such as chat_template_kwargs or tools.
        """
        return self._reply(model, messages, params, template, sampling, RequestOutputKind.DELTA)

    async def answer(
        self,
        model: str,
        messages: Sequence[Any],
        params: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Answer:
        """The same as one Answer."""
        return await first(self._reply(model, messages, params, template, sampling, RequestOutputKind.FINAL_ONLY))

    def _continuation(
        self, model: str, prompt: Any, params: Any, sampling: dict[str, Any], kind: RequestOutputKind
    ) -> Answers:
        engine = self.engine

        async def rendered() -> Any:
            parsed = parse_model_prompt(engine.model_config, prompt)
            return (await engine.renderer.render_cmpl_async([parsed]))[0]

        plan = self._living.plan_for(model, lambda: turns_in(prompt, engine.renderer.get_tokenizer().decode))
        return self._said(plan, rendered, of_kind(kind, sampling_params(params, sampling)))

    def _reply(
        self,
        model: str,
        messages: Sequence[Any],
        params: Any,
        template: Mapping[str, Any] | None,
        sampling: dict[str, Any],
        kind: RequestOutputKind,
    ) -> Answers:
        engine, renderer = self.engine, self.engine.renderer
        tokens = is_mistral_tokenizer(renderer.tokenizer) or engine.model_config.enable_prompt_embeds
        form = chat_params(tokens, **(template or {}))

        async def rendered() -> Any:
            return (await renderer.render_chat_async([list(messages)], form))[1][0]

        plan = self._living.plan_for(model, lambda: turns_of(list(messages)))
        return self._said(plan, rendered, of_kind(kind, sampling_params(params, sampling)))

    async def _said(self, plan: Plan, rendered: Callable[[], Awaitable[Any]], params: SamplingParams) -> Answers:
        request = None if plan.is_base else lora_request(plan)
        try:
            async with self._holding(request):
                SPEAKING.set(None if request is None else self._living.voices.of(plan.name))
                prompt = await rendered()
                generated = self.engine.generate(prompt, params, uuid4().hex, lora_request=request)
                async with aclosing(generated) as outputs:
                    async for output in outputs:
                        for one in output.outputs:
                            if one.finish_reason == "error" and params.structured_outputs is not None:
                                raise ComposeError(UNWRITABLE)
                            ids = list(one.token_ids)
                            yield Answer(one.text, plan.name, ids, one.finish_reason, one.index, output)
        except VLLMValidationError as error:
            raise ValueError(plain(error)) from error
        except (EngineDeadError, Unavailable) as error:
            if self._engine is None or self._engine.errored:
                raise self._ended() from error
            raise

    @asynccontextmanager
    async def _holding(self, request: Any) -> AsyncIterator[None]:
        """Has a composition in memory while its request runs."""
        if request is None:
            yield
            return
        await self._leases.let_pass()
        lease = await self._leases.acquire(request)
        try:
            yield
        finally:
            self._leases.release(lease)

    def _describe(self) -> tuple[Family, AsyncEngineArgs]:
        family = Family.load(self._path)
        for name in self._settings["preload"]:
            family.plan(family.parse(name, self._arguments[0]))
        return family, AsyncEngineArgs(**engine_options(family, *self._arguments))

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"this runtime has ended ({self._over or 'its engine has died'}): make another")


def chat_params(
    tokenize: bool,
    chat_template: str | None = None,
    chat_template_content_format: Any = "auto",
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: list[dict[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> ChatParams:
    """As LLM.chat has them."""
    ours = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
    kwargs = {**(chat_template_kwargs or {}), **ours, "tools": tools, "tokenize": tokenize}
    return ChatParams(chat_template, chat_template_content_format, kwargs)


def of_kind(kind: RequestOutputKind, params: SamplingParams) -> SamplingParams:
    params = params.clone()
    params.output_kind = kind
    return params


async def first(answers: Answers) -> Answer:
    async with aclosing(answers):
        return await anext(answers)
