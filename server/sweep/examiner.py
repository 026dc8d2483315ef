"""examiner: what compositions make of questions, by one engine."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from vllm import SamplingParams

from layerloom.server.runtime.runtime import Runtime

from .questions import Asked, Manner, Question, is_right


class Examiner:
    """Puts questions to compositions of one pair, which speak with one voice."""

    def __init__(self, runtime: Runtime, pair: str, questions: Sequence[Question], manner: Manner) -> None:
        self.runtime = runtime
        self.manner = manner
        self._compares = bool({"logprob", "choice"} & set(manner.kinds))
        self.tokenizer: Any = runtime.llm.get_tokenizer()
        voice = runtime.family.voice(pair)
        self.template = voice.template(False) if manner.chat else None
        self.tokens = dict(voice.tokens or {})
        self.asked = [self._read(question) for question in questions]

    def _read(self, question: Question) -> Asked:
        messages = question.messages
        if messages is None:
            text = self.manner.template.replace("{question}", str(question.question))
            messages = [{"role": "user", "content": text}]
        if self.template is None:
            prompt = self.tokenizer.encode("\n".join(str(message.get("content")) for message in messages))
        else:
            said: Any = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, add_generation_prompt=True, tokenize=False, **self.tokens
            )
            prompt = self.tokenizer.encode(said, add_special_tokens=False)
        others = [choice for choice in question.choices if choice != question.answer]
        answers = [question.answer, *(others if "choice" in self.manner.kinds else ())]
        ids = [self.tokenizer.encode(self.manner.before + text, add_special_tokens=False) for text in answers]
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
