"""voices: each composition's own chat template, ends of answers and sampling defaults, where vLLM has one for a model.

What stock vLLM would take from the merged checkpoint's files comes from the composition's voice (composer's), at the
three places where vLLM uses it: when it renders a conversation, when a request gets what it did not say of sampling,
and when it is given to the engine with the tokens that end it.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from transformers import GenerationConfig
from vllm.config import ModelConfig
from vllm.renderers import ChatParams

from layerloom.composer import Family
from layerloom.composer.sources.voice import Voice

MOST = 1024
"""Names whose voices are remembered."""


@dataclass(frozen=True)
class Spoken:
    """A voice in vLLM's terms: `eos` is the token that ends an answer, `generation` names more of them."""

    voice: Voice
    eos: int | None
    generation: Mapping[str, Any]
    sampling: Mapping[str, Any]
    tokens: Mapping[str, str]
    """Special tokens that are not the base's, for its chat template."""


SPEAKING: ContextVar[Spoken | None] = ContextVar("layerloom_speaking", default=None)
"""Whose conversation is rendered, and whose requests are made, in this context; None for the base's."""


class Voices:
    """The voices of a family, put in place of the one that an engine client knows.

    `engine` is an AsyncLLM or an LLMEngine. An explicit --chat-template or --generation-config DIR is everybody's.
    """

    def __init__(self, family: Family, engine: Any) -> None:
        self.processor = engine.input_processor
        self.renderer = engine.renderer
        self.config: ModelConfig = engine.model_config
        self.speak_for(family)
        self._own = self.config.generation_config in ("auto", "vllm")
        self._base_fields = self.processor.generation_config_fields
        self._base_eos = self.renderer.get_eos_token_id()
        if self._own:
            # Else vLLM adds the base's to every request.
            self.processor.generation_config_fields = {}
            self._assign = self.processor.assign_request_id
            self.processor.assign_request_id = self._finish
        render, render_async = self.renderer.render_messages, self.renderer.render_messages_async

        def rendered(messages: list[Any], params: ChatParams) -> Any:
            return render(messages, templated(params))

        def rendered_async(messages: list[Any], params: ChatParams) -> Awaitable[Any]:
            return render_async(messages, templated(params))

        self.renderer.render_messages, self.renderer.render_messages_async = rendered, rendered_async

    def speak_for(self, family: Family) -> None:
        """Has the voices of another family from now on."""
        self.family = family
        self.of: Callable[[str], Spoken] = lru_cache(MOST)(self._of)

    def _of(self, name: str) -> Spoken:
        base, voice = self.family.base.voice.over(Voice()), self.family.voice(name)
        tokens = {role: token for role, token in (voice.tokens or {}).items() if token != (base.tokens or {}).get(role)}
        eos = self._base_eos
        if "eos_token" in tokens:
            tokenizer = self.renderer.tokenizer
            found = tokenizer.convert_tokens_to_ids(tokens["eos_token"])
            # A token that it does not have is its unknown one.
            if isinstance(found, int) and tokenizer.convert_ids_to_tokens(found) == tokens["eos_token"]:
                eos = found
        if voice.generation == base.generation:
            generation = self._base_fields
        else:
            generation = GenerationConfig.from_dict(dict(voice.generation or {})).to_diff_dict()
        settings = SimpleNamespace(
            generation_config=self.config.generation_config,
            try_get_generation_config=lambda: dict(generation),
            override_generation_config=self.config.override_generation_config,
        )
        return Spoken(voice, eos, generation, ModelConfig.get_diff_sampling_param(settings), tokens)

    def _finish(self, request: Any) -> None:
        """Gives a request the ends of its composition's answers; vLLM has given it the base's primary one."""
        self._assign(request)
        params = request.sampling_params
        if params is None or getattr(params, "trace_decode_token_ids", None):
            return
        adapter = request.lora_request
        # What was resolved stays, though the family may have become another one since.
        spoken = self.of("base") if adapter is None else SPEAKING.get() or self.of(adapter.lora_name)
        if spoken.eos != self._base_eos and self._base_eos not in (params.stop_token_ids or ()):
            params.all_stop_token_ids.discard(self._base_eos)
        params.update_from_generation_config(dict(spoken.generation), spoken.eos)

    def lend(self, serving: Any) -> None:
        """Has one of vLLM's serving objects take its sampling defaults from the voice that speaks.

        Its class is exchanged for one that differs in that alone.
        """
        own = serving.default_sampling_params

        def defaults(_: Any) -> Mapping[str, Any]:
            spoken = SPEAKING.get()
            return own if spoken is None else spoken.sampling

        kind = type(serving)
        serving.__class__ = type(kind.__name__, (kind,), {"default_sampling_params": property(defaults)})

    @property
    def lends_sampling(self) -> bool:
        """Whether sampling defaults are each voice's own."""
        return self._own


def templated(params: ChatParams) -> ChatParams:
    """The parameters of a conversation with the template of the voice that speaks, unless they name one."""
    spoken = SPEAKING.get()
    if spoken is None or params.chat_template is not None:
        return params
    template = spoken.voice.template(bool(params.chat_template_kwargs.get("tools")))
    return replace(
        params, chat_template=template, chat_template_kwargs={**spoken.tokens, **params.chat_template_kwargs}
    )
