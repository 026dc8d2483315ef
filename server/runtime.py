"""runtime: a family in this process, for Python callers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams

from layerloom.composer import Family

from .engine import engine_options, lora_request, prepare_environment


class Runtime:
    """vLLM's offline engine over a family.

    >>> Runtime("family.yaml").generate("math+swahili", ["Asha ana ndizi 5 . …"], max_tokens=8)

    `bank_memory` (bytes for compositions), `pages` and `residency` are explained in engine.py; `options` are vLLM's
    own engine arguments. Raises ComposeError when the family or an option does not fit.
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
        prepare_environment()
        self.family = Family.load(family)
        self.allow_recipes = allow_recipes
        self.llm = LLM(**engine_options(self.family, allow_recipes, options, bank_memory, pages, residency))

    def generate(
        self,
        model: str | Sequence[str],
        prompts: str | Sequence[Any],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **sampling: Any,
    ) -> list[RequestOutput]:
        """Continues each prompt with one model, or prompt i with model[i]; all run in one batch.

        `params` is vLLM's SamplingParams, `sampling` its fields. Unknown names raise UnknownName before anything runs.
        """
        if params is None:
            params = SamplingParams(**{"temperature": 0.0, **sampling})
        elif sampling:
            raise TypeError("give either params or its fields, not both")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        models = [model] * len(prompts) if isinstance(model, str) else list(model)
        if len(models) != len(prompts):
            raise ValueError(f"{len(models)} models for {len(prompts)} prompts")
        plans = [self.family.plan(self.family.parse(name, self.allow_recipes)) for name in models]
        requests = [None if plan.is_base else lora_request(plan) for plan in plans]
        # Ready before a step needs them: what cannot be made is an error here, and would end the engine there.
        for request in {request.lora_int_id: request for request in requests if request is not None}.values():
            self.llm.llm_engine.add_lora(request)
        return self.llm.generate(prompts, params, lora_request=requests, use_tqdm=False)
