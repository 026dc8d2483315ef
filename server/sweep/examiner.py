"""examiner: what compositions make of questions, by one engine."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from jinja2 import TemplateError
from vllm import SamplingParams

from layerloom.composer import ComposeError
from layerloom.composer.errors import quoted
from layerloom.server.runtime.runtime import Runtime

from .questions import Asked, Manner, Question, is_right


class Examiner:
    """Puts questions to compositions of one pair, which speak with one voice.

    Raises ComposeError where a question cannot be asked: with no chat template, in the template's own words, or too
    long for the model.
    """

    def __init__(self, runtime: Runtime, pair: str, questions: Sequence[Question], manner: Manner) -> None:
        self.runtime = runtime
        self.manner = manner
        self._compares = bool({"logprob", "choice"} & set(manner.kinds))
        self.tokenizer: Any = runtime.llm.get_tokenizer()
        self.room = runtime.llm.llm_engine.model_config.max_model_len
        voice = runtime.family.voice(pair)
        self.template = voice.template(False) if manner.chat else None
        if manner.chat and self.template is None:
            raise ComposeError(f"{pair} has no chat template: ask with --text")
        self.tokens = dict(voice.tokens or {})
        self.asked = []
        for number, question in enumerate(questions, 1):
            try:
                self.asked.append(self._read(question))
            except (TemplateError, ValueError, TypeError, LookupError) as error:
                said = question.messages[-1].content if question.messages else question.question
                raise ComposeError(f"question {number}, {quoted(said)}: {error}") from error

    def _read(self, question: Question) -> Asked:
        """Raises ValueError, and what a template or a tokenizer does."""
        messages = [message.model_dump() for message in question.messages or ()]
        if not messages:
            text = self.manner.template.replace("{question}", str(question.question))
            messages = [{"role": "user", "content": text}]
        if self.template is None:
            prompt = self.tokenizer.encode("\n".join(message["content"] for message in messages))
        else:
            said: Any = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, add_generation_prompt=True, tokenize=False, **self.tokens
            )
            prompt = self.tokenizer.encode(said, add_special_tokens=False)
        others = [choice for choice in question.choices if choice != question.answer]
        answers = [question.answer, *(others if "choice" in self.manner.kinds else ())]
        ids = [self.tokenizer.encode(self.manner.before + text, add_special_tokens=False) for text in answers]
        if not prompt or not all(ids):
            raise ValueError("it or an answer of its is no token to this model")
        longest = len(prompt) + (max(map(len, ids)) if self._compares else 0)
        if longest >= self.room:
            raise ValueError(f"{longest} tokens with the answer are too many: the model takes {self.room - 1}")
        return Asked(prompt, ids, question.answer)

    def examine(self, names: Sequence[str], rows: Sequence[int]) -> dict[tuple[str, int], dict[str, float]]:
        """The scores of each composition for each of these questions; all of them run in the same batches."""
        models: list[str] = []
        prompts: list[Any] = []
        params: list[SamplingParams] = []
        generated = SamplingParams(temperature=0.0, max_tokens=self.manner.max_tokens)
        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        asked_of = list(product(names, rows))
        for name, row in asked_of:
            for ids, sampled in self._asked(row, generated, scored):
                models.append(name)
                prompts.append({"prompt_token_ids": ids})
                params.append(sampled)
        outputs = iter(self.runtime.generate(models, prompts, params))
        return {(name, row): self._scores(self.asked[row], outputs) for name, row in asked_of}

    def _asked(
        self, row: int, generated: SamplingParams, scored: SamplingParams
    ) -> Iterator[tuple[list[int], SamplingParams]]:
        asked = self.asked[row]
        if "exact" in self.manner.kinds:
            yield asked.prompt, generated
        if self._compares:
            yield from ((asked.prompt + answer, scored) for answer in asked.answers)

    def _scores(self, asked: Asked, outputs: Iterator[Any]) -> dict[str, float]:
        """Takes as many outputs as `_asked` gave prompts."""
        score = {}
        if "exact" in self.manner.kinds:
            score["exact"] = float(is_right(next(outputs).outputs[0].text, asked.answer))
        if self._compares:
            sums = [last_logprob(next(outputs), len(answer)) for answer in asked.answers]
            score["logprob"] = sums[0]
            if "choice" in self.manner.kinds:
                score["choice"] = float(sums[0] == max(sums) and sums.count(sums[0]) == 1)
        return score


def last_logprob(output: Any, count: int) -> float:
    """The summed log-probability of the last `count` tokens of a prompt."""
    ids, logprobs = output.prompt_token_ids, output.prompt_logprobs
    return sum(logprobs[at][ids[at]].logprob for at in range(len(ids) - count, len(ids)))
