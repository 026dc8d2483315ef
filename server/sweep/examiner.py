"""examiner: what compositions make of questions, by one engine."""

from collections.abc import Callable, Sequence
from typing import Any

from vllm import SamplingParams

from layerloom.server.runtime.runtime import Runtime

from .questions import Asked, Manner, Question, is_right


class Examiner:
    """Puts questions to compositions of one pair, which speak with one voice."""

    def __init__(self, runtime: Runtime, pair: str, questions: Sequence[Question], manner: Manner) -> None:
        self.runtime = runtime
        self.manner = manner
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
        readers: list[Callable[[Any], Any]] = []

        def ask(name: str, ids: list[int], sampled: SamplingParams, read: Callable[[Any], Any]) -> None:
            models.append(name)
            prompts.append({"prompt_token_ids": ids})
            params.append(sampled)
            readers.append(read)

        generated = SamplingParams(temperature=0.0, max_tokens=self.manner.max_tokens)
        scored = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        for name in names:
            for row in rows:
                asked = self.asked[row]
                if "exact" in self.manner.kinds:
                    ask(name, asked.prompt, generated, lambda output: output.outputs[0].text)
                if {"logprob", "choice"} & set(self.manner.kinds):
                    for answer in asked.answers:
                        ask(name, asked.prompt + answer, scored, last_logprobs(len(answer)))
        outputs = iter(zip(readers, self.runtime.generate(models, prompts, params), strict=True))

        def following() -> Any:
            read, output = next(outputs)
            return read(output)

        found: dict[tuple[str, int], dict[str, float]] = {}
        for name in names:
            for row in rows:
                asked, score = self.asked[row], found.setdefault((name, row), {})
                if "exact" in self.manner.kinds:
                    score["exact"] = float(is_right(following(), asked.answer))
                if {"logprob", "choice"} & set(self.manner.kinds):
                    sums = [following() for _ in asked.answers]
                    score["logprob"] = sums[0]
                    if "choice" in self.manner.kinds:
                        score["choice"] = float(sums[0] == max(sums) and sums.count(sums[0]) == 1)
        return found


def last_logprobs(count: int) -> Callable[[Any], float]:
    """The summed log-probability of the last `count` tokens of a prompt."""

    def read(output: Any) -> float:
        ids, logprobs = output.prompt_token_ids, output.prompt_logprobs
        return sum(logprobs[at][ids[at]].logprob for at in range(len(ids) - count, len(ids)))

    return read
