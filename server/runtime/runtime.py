"""runtime: a family in this process, for Python callers."""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import sleep
from types import TracebackType
from typing import Any
from uuid import uuid4
from weakref import WeakSet, finalize

from vllm import LLM, RequestOutput, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.utils.system_utils import set_env_var

from layerloom.composer import ComposeError, Family, Plan
from layerloom.server.engine.manager import BUSY, HELD, REFUSED
from layerloom.server.languages import Languages, turns_of
from layerloom.server.options import engine_options, lora_request, prepare_environment
from layerloom.server.voices import SPEAKING, Voices

from .asked import sampling_params, turns_in
from .script import imported_once
from .stepper import Stepper

PAUSE = 0.01
"""Seconds before a caller asks again for room, or whether files have been read."""

MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"

Params = SamplingParams | Sequence[SamplingParams] | None

_HERE: WeakSet[Stepper] = WeakSet()
"""The engines in this process."""


class Runtime:
    """vLLM's offline engine over a family, for any number of threads at once.

    >>> with Runtime("demo", kv_cache_memory_bytes=2**30) as runtime:
    ...     chat = [{"role": "user", "content": "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"}]
    ...     (output,) = runtime.chat("math+auto", chat, max_tokens=64)
    ...     print(output.outputs[0].text)  # output.lora_request.lora_name says which composition answers

    `bank_memory` is in bytes; it, `pages` and `residency` are the options of `layerloom serve`, and `options` vLLM's
    own engine arguments. Raises ComposeError when the family or an option does not fit. AsyncRuntime is for asyncio.

    The engine runs in this process, on a thread of its own, so that a script needs no `if __name__ == "__main__":`
    and errors arrive as they were raised. vLLM allows one such engine at a time. It shares the GIL: an event loop
    beside it woke up 4 to 30 ms late one time in a hundred, by how busy the machine was.
    VLLM_ENABLE_V1_MULTIPROCESSING=1 puts it in a process of its own (5 ms); then, and with `tensor_parallel_size`,
    whose workers are processes, a script does need that line.
    """

    def __init__(
        self,
        family: str | Path,
        *,
        allow_recipes: bool = True,
        bank_memory: int | None = None,
        pages: str | None = None,
        residency: str | None = None,
        **options: Any,
    ) -> None:
        with imported_once():
            prepare_environment()
            self.family = Family.load(family)
            # By all cores, and remembered, before the engine has processes of its own.
            self.family.revisions()
            self.allow_recipes = allow_recipes
            self.languages = Languages(self.family)
            settings = engine_options(self.family, allow_recipes, options, bank_memory, pages, residency)
            self._stepper = _start(settings)
            self._voices: Voices = self._stepper.ask(lambda: Voices(self.family, self._stepper.llm.llm_engine))
        self._end = finalize(self, self._stepper.close)

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine with its threads and processes, and frees its memory. Later calls raise RuntimeError.

        So they do when the engine has died; calls that were running then raise what ended it, such as EngineDeadError.
        """
        self._end()

    @property
    def llm(self) -> LLM:
        """vLLM's own object. It knows nothing of names, and of threads only the engine's."""
        return self._stepper.llm

    def generate(
        self, model: str | Sequence[str], prompts: str | Sequence[Any], params: Params = None, **sampling: Any
    ) -> list[RequestOutput]:
        """Continues each prompt with one model, or prompt i with model[i]; all run in one batch.

        `params` is vLLM's SamplingParams, or one for each prompt; `sampling` its fields, structured_outputs as a
        mapping, too. The text of prompt i is [i].outputs[0].text. Unknown names raise UnknownName before anything runs.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        llm = self.llm
        plans = self._plans(model, "prompts", prompts, lambda prompt: turns_in(prompt, self._decode))
        return self._run(llm.enqueue, plans, prompts, params, sampling)

    def chat(
        self,
        model: str | Sequence[str],
        messages: Sequence[Any],
        params: Params = None,
        *,
        template: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> list[RequestOutput]:
        """The answer to a conversation, a list of {"role": …, "content": …}, or to each of a list of conversations.

        The rest is as in `generate`; `template` are more arguments of vLLM's LLM.chat, such as chat_template_kwargs
        or tools.
        """
        llm = self.llm
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations = [messages] if single else list(messages)

        def enqueue(rows: list[Any], params: Sequence[SamplingParams], lora_request: Any, **options: Any) -> list[str]:
            ids: list[str] = []
            try:
                # One by one, as vLLM has one chat template for a call.
                for row, sampled, request in zip(rows, params, lora_request, strict=True):
                    SPEAKING.set(None if request is None else self._voices.of(request.lora_name))
                    ids += llm.enqueue_chat([row], [sampled], lora_request=[request], **options, **(template or {}))
            except BaseException:
                llm.llm_engine.abort_request([request_id.partition("-")[0] for request_id in ids])
                raise
            return ids

        plans = self._plans(model, "conversations", conversations, turns_of)
        return self._run(enqueue, plans, conversations, params, sampling)

    def _plans(
        self, model: str | Sequence[str], kind: str, inputs: list[Any], turns: Callable[[Any], list[str]]
    ) -> list[Plan]:
        """Of each input; where a name leaves the language open, what the user says there tells it."""
        models = [model] * len(inputs) if isinstance(model, str) else list(model)
        if len(models) != len(inputs):
            raise ValueError(f"{len(models)} models for {len(inputs)} {kind}")
        found = [self.family.parse(name, self.allow_recipes) for name in models]
        said = zip(found, inputs, strict=True)
        return [self.family.plan(self.languages.meant(named, partial(turns, asked))) for named, asked in said]

    def _decode(self, ids: list[int]) -> str:
        return str(self._stepper.ask(lambda: self.llm.get_tokenizer().decode(ids)))

    def _run(
        self,
        enqueue: Callable[..., list[str]],
        plans: list[Plan],
        inputs: list[Any],
        params: Params,
        sampling: dict[str, Any],
    ) -> list[RequestOutput]:
        params = sampling_params(params, sampling)
        each = [params] * len(inputs) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(inputs):
            raise ValueError(f"{len(each)} params for {len(inputs)} prompts")
        rows: dict[str, list[int]] = {}
        for row, plan in enumerate(plans):
            rows.setdefault(plan.digest, []).append(row)
        left = {plan.digest: plan for plan in plans}
        outputs: dict[int, RequestOutput] = {}
        while left:
            with self._holding(left.values()) as held:
                now = sorted(row for plan in held for row in rows[plan.digest])
                requests = [None if plans[row].is_base else lora_request(plans[row]) for row in now]
                asked = [inputs[row] for row in now], [each[row] for row in now]
                finished = self._stepper.run(partial(enqueue, *asked, lora_request=requests, use_tqdm=False))
            outputs |= zip(now, finished, strict=True)
            for plan in held:
                del left[plan.digest]
        return [outputs[row] for row in range(len(inputs))]

    @contextmanager
    def _holding(self, plans: Iterable[Plan]) -> Iterator[list[Plan]]:
        """Has compositions in memory while their requests run: all of `plans`, or the first that there is room for.

        Who has one goes on and comes back for the rest, so that no two callers wait for each other. What cannot be
        made is an error here, for one caller; in a step it would end the engine.
        """
        holder = uuid4().hex
        held: list[Plan] = []
        told: list[LoRARequest] = []
        try:
            for plan in plans:
                if not plan.is_base:
                    told.append(lora_request(plan))
                    while not (fits := self._hold(told[-1], holder)) and not held:
                        sleep(PAUSE)
                    if not fits:
                        break
                held.append(plan)
            yield held
        finally:
            for request in told:
                self._release(request, holder)

    def _hold(self, request: LoRARequest, holder: str) -> bool:
        """Whether all workers have the composition for `holder` now. Waits while they read its files."""
        arguments = request.lora_name, request.lora_path, request.lora_int_id, holder
        while True:
            answers = dict(self._tell("hold_composition", *arguments))
            if REFUSED in answers:
                raise ComposeError(f"{request.lora_name} could not be assembled: {answers[REFUSED]}")
            if BUSY in answers:
                self._release(request, holder)
                return False
            if set(answers) == {HELD}:
                return True
            sleep(PAUSE)

    def _release(self, request: LoRARequest, holder: str) -> None:
        # An engine that has ended holds nothing.
        with suppress(Exception):
            self._tell("release_composition", request.lora_path, request.lora_int_id, holder)

    def _tell(self, method: str, *arguments: Any) -> list[Any]:
        """What the workers answer to a method of theirs."""
        return self._stepper.ask(lambda: self.llm.llm_engine.collective_rpc(method, args=arguments))


def _start(settings: dict[str, Any]) -> Stepper:
    if os.environ.get(MULTIPROCESSING, "0") != "0":
        return Stepper(lambda: LLM(**settings))
    gc.collect()
    if any(stepper.alive for stepper in _HERE):
        raise ComposeError(
            "this process has a runtime already, and vLLM's process groups serve one: close it, "
            f"or set {MULTIPROCESSING}=1 to give each a process of its own"
        )

    def build() -> LLM:
        # For this engine alone: others of the process stay where vLLM would have them.
        with set_env_var(MULTIPROCESSING, "0"):
            return LLM(**settings)

    stepper = Stepper(build)
    _HERE.add(stepper)
    return stepper
