"""answer: what a composition says, as AsyncRuntime hands it on."""

from dataclasses import dataclass, field

from vllm import RequestOutput


@dataclass(frozen=True)
class Answer:
    """All of an answer, or the next piece of one that streams."""

    text: str
    model: str
    """The composition that answers: math+swahili, where math+auto was asked for."""
    token_ids: list[int]
    finish_reason: str | None
    """Why it ends here ("stop", "length"); None while more is to come."""
    index: int
    """Which of `n` answers to the same prompt."""
    output: RequestOutput = field(repr=False)
    """vLLM's own: the prompt's tokens, logprobs, metrics."""
