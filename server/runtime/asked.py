"""asked: what callers of a runtime may write in more than one way."""

from collections.abc import Callable, Mapping
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from layerloom.server.http.said import text_of

Decode = Callable[[list[int]], str]


def sampling_params(params: Any, fields: Mapping[str, Any]) -> Any:
    """`params`, or SamplingParams of its `fields`, greedy unless they say otherwise.

    `structured_outputs` may be a mapping, as in {"json": schema}. Raises ValueError for what a field cannot be.
    """
    if params is not None and fields:
        raise TypeError("give either params or its fields, not both")
    if params is not None:
        return params
    form = fields.get("structured_outputs")
    try:
        if isinstance(form, Mapping):
            fields = {**fields, "structured_outputs": StructuredOutputsParams(**form)}
        return SamplingParams(**{"temperature": 0.0, **fields})
    except VLLMValidationError as error:
        raise ValueError(plain(error)) from error


def plain(error: VLLMValidationError) -> str:
    """What it says, without the parameter's name, which vLLM adds."""
    return str(error.args[0])


def turns_in(prompt: Any, decode: Decode) -> list[str]:
    """What a prompt of vLLM's says: a text, token ids, or a mapping that has either."""
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt", prompt.get("prompt_token_ids"))
    text = text_of(prompt, decode)
    return [] if text is None else [text]
