"""quality: what a codec costs, in bytes and in what the composed model then says. Needs transformers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerloom.composer.errors import ComposeError
from layerloom.composer.family.family import Family
from layerloom.composer.family.plan import Plan
from layerloom.composer.sources.codecs import Codec, Exact, Int4, Int8, Lowrank, Sign, norms, same
from layerloom.composer.sources.layout import language_config

from .extract import encoded, is_plain
from .merge import blend_for, blended

CODECS: tuple[Codec, ...] = (Exact(), Int8(), Int4(), Sign(), Lowrank())
PROMPTS, LENGTH, ANSWER, SEED = 8, 24, 24, 0
"""Random prompts and their length; the most tokens an answer has; where the random ids start."""


@dataclass(frozen=True)
class Cost:
    """One codec for the experts of a composition.

    `bytes` is what the experts' differences take under the codec, `plain` what the tensors that differ take as they
    are. `error` is ‖Ê - E‖ / ‖E - B‖ over all of them. `divergence` is KL(exact ‖ codec) of the next-token
    distributions in nats: the mean over all positions of prompts and answers, and `worst` the largest. `agreement` is
    the share of the answers' tokens that the codec's model ranks first too, after the same tokens.
    """

    codec: str
    bytes: int
    plain: int
    error: float
    divergence: float
    worst: float
    agreement: float


@dataclass(frozen=True)
class Quality:
    """What each codec costs one composition; `positions` and `tokens` are how many the means are over."""

    name: str
    prompts: str
    positions: int
    tokens: int
    costs: tuple[Cost, ...]


@dataclass
class Tally:
    """Bytes and squared norms, summed over the tensors of the experts under one codec."""

    bytes: int = 0
    plain: int = 0
    lost: float = 0.0
    change: float = 0.0

    @property
    def error(self) -> float:
        return math.sqrt(self.lost / self.change) if self.change else 0.0


def quality(
    family: Family,
    name: str,
    prompts: Sequence[str] = (),
    codecs: Iterable[Codec] = CODECS,
    progress: Callable[[str], None] = lambda codec: None,
) -> Quality:
    """Measures codecs on a composition against the same composition of the experts as they are. Raises ComposeError.

    As in `extract`, a codec stores the matrices of the decoder layers, and the rest is exact. Everything is computed on
    the CPU in fp32 from weights rounded to the base's dtype. Without prompts random token ids are used. An answer is
    what the exact composition continues a prompt with, greedily.
    """
    plan = family.plan(name)
    if plan.is_base:
        raise ComposeError(f"{plan.name}: is the base; a codec costs nothing there")
    asked = tokens_of(family, prompts) if prompts else random_tokens(family)
    exact = load(family, {tensor: composed(family, plan, tensor) for tensor in family.base.tensors})
    rows = [answer(exact, row) for row in asked]
    wanted = [log_probabilities(exact, row) for row in rows]
    del exact
    costs = []
    for codec in codecs:
        progress(codec.codec)
        tally = Tally()
        model = load(family, {tensor: coded(family, plan, tensor, codec, tally) for tensor in family.base.tensors})
        divergences, agreed = [], 0
        for prompt, row, theirs in zip(asked, rows, wanted, strict=True):
            ours = log_probabilities(model, row)
            divergences.append((theirs.exp() * (theirs - ours)).nan_to_num(0.0).sum(-1).clamp(min=0.0))
            spoken = slice(len(prompt) - 1, len(row) - 1)
            agreed += int((ours[spoken].argmax(-1) == torch.tensor(row[len(prompt) :])).sum())
        every = torch.cat(divergences)
        said = sum(map(len, rows)) - sum(map(len, asked))
        costs.append(
            Cost(
                codec=label(codec),
                bytes=tally.bytes,
                plain=tally.plain,
                error=tally.error,
                divergence=float(every.mean()),
                worst=float(every.max()),
                agreement=agreed / max(1, said),
            )
        )
    kind = f"{len(asked)} given" if prompts else f"{PROMPTS} of {LENGTH} random tokens"
    return Quality(plan.name, kind, sum(map(len, rows)), said, tuple(costs))


def label(codec: Codec) -> str:
    return f"lowrank {codec.rank}" if isinstance(codec, Lowrank) else codec.codec


def composed(family: Family, plan: Plan, name: str) -> torch.Tensor:
    return blended(blend_for(family, plan, name), lambda source: family.checkpoint(source).read(name))


def coded(family: Family, plan: Plan, name: str, codec: Codec, tally: Tally) -> torch.Tensor:
    """One tensor of the composition as it comes out of the codec; adds to the tally for all experts of the plan."""
    base = family.base.read(name).contiguous()
    decoded = {"base": base}
    for expert in plan.experts:
        e = family.checkpoint(expert).read(name).contiguous()
        decoded[expert] = e
        if same(e, base):
            continue
        try:
            used, parts = encoded(e, base, Exact() if is_plain(family.base, name) else codec, None)
            decoded[expert] = used.decode(parts, base)
        except ComposeError as reason:
            raise ComposeError(f"{family.checkpoint(expert).path}: {name}: {reason}") from reason
        lost, change = norms(decoded[expert], e, base)
        tally.bytes += sum(part.nbytes for part in parts.values())
        tally.plain += e.nbytes
        tally.lost += lost * lost
        tally.change += change * change
    return blended(blend_for(family, plan, name), decoded.__getitem__)


def load(family: Family, weights: dict[str, torch.Tensor]) -> Any:
    """A transformers model in fp32 with these weights, which have the checkpoint's names."""
    import transformers
    from transformers.utils import logging

    path = family.base.path
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        kind = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0])
        model, found = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        raise ComposeError(f"{path}: transformers cannot load the model: {str(error).partition(chr(10))[0]}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    absent = sorted(found["missing_keys"])
    if absent:
        raise ComposeError(f"{path}: transformers finds no {absent[0]} in the checkpoint")
    return model.eval()


def random_tokens(family: Family) -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED)
    size = int(language_config(family.base.config).get("vocab_size", 0))
    if size < 1:
        raise ComposeError(f"{family.base.path / 'config.json'}: has no vocab_size; give prompts")
    ids: list[list[int]] = torch.randint(size, (PROMPTS, LENGTH), generator=generator).tolist()
    return ids


def tokens_of(family: Family, prompts: Sequence[str]) -> list[list[int]]:
    """Prompts by the base's tokenizer; under its chat template, if it has one, as a user's message."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(family.base.path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ComposeError(f"{family.base.path}: its tokenizer cannot be read: {error}") from error
    found: list[list[int]] = []
    for prompt in prompts:
        text = prompt
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
        if not ids:
            raise ComposeError("a prompt has no tokens")
        found.append(list(ids))
    return found


@torch.inference_mode()
def answer(model: Any, prompt: list[int]) -> list[int]:
    """A prompt and what the model says to it."""
    ids = torch.tensor([prompt])
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0
    )
    found: list[int] = said[0].tolist()
    return found


@torch.inference_mode()
def log_probabilities(model: Any, row: list[int]) -> torch.Tensor:
    """[positions, vocabulary] float64."""
    logits: torch.Tensor = model(torch.tensor([row])).logits[0]
    return logits.double().log_softmax(-1)
