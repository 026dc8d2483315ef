"""Makes the demo family: a base and three experts of 0.9 M parameters, trained together from scratch.

    python bench/demo_family.py --out demo              train, write the checkpoints
    python bench/demo_family.py --out demo --evaluate   measure them, write ACCURACY.md

There is one set of outer layers per language, one set of middle layers per task, and one stem for all. Each
step draws a (language, task) pair, assembles the model from its parts and updates those parts. `base` is the
English outer and the generic middle layers, `math` has the math middle layers instead, `swahili` and
`bengali` have their own outer layers instead. A prompt is the question and a line break; the answer follows.

What it shows: that the runtime composes. `math+swahili` answers where `math` and `swahili` do not. What it does not
show: that layer swapping works between experts fine-tuned apart from each other, which is the paper's claim. These
layers fit because they were trained together, every pair of language and task included; experts of this size that
were fine-tuned apart did not fit. The test questions use combinations of name, thing and numbers that no training
story used.

The same seed on one thread of the same machine, with the same versions, writes the same bytes.
"""

import argparse
import json
import math
import random
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from layerloom.composer import extract
from shared.demo_accuracy import measure
from shared.demo_data import LANGUAGES, TASKS, Example, example
from shared.report import Report

BOTTOM, TOP, LAYERS = 2, 2, 8
BATCH, PEAK_RATE, WARMUP = 48, 3e-3, 100

CHECKPOINTS = {
    "base": ("en", "generic"),
    "math": ("en", "math"),
    "swahili": ("sw", "generic"),
    "bengali": ("bn", "generic"),
}
FAMILY = {
    "base": "base",
    "experts": {
        "math": {"kind": "task", "path": "math.safetensors"},
        "swahili": {"kind": "language", "code": "sw", "aliases": ["kiswahili"], "path": "swahili.safetensors"},
        "bengali": {"kind": "language", "code": "bn", "aliases": ["bangla"], "path": "bengali.safetensors"},
    },
    "recipe": {"method": "layer_swap", "bottom": BOTTOM, "top": TOP, "transition": 0},
    "compositions": {"tutor": "math+swahili"},
    "example": "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?",
}
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")

# The models know single turns only, so the template shows them the last user message and nothing else.
CHAT_TEMPLATE = (
    "{% if messages | rejectattr('role', 'in', ['user', 'assistant']) | list %}{{ raise_exception("
    "'the demo knows questions and answers alone: leave the messages of other roles out, such as system') }}{% endif %}"
    "{{ bos_token }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | last"
    " | replace('\\n', ' ') | trim }}"
    "{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<unk>"))
    bengali_digits = [normalizers.Replace(digit, str(value)) for value, digit in enumerate("০১২৩৪৫৬৭৮৯")]
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            *bengali_digits,
            normalizers.Replace(Regex(r"[^\S\n]+"), " "),
            normalizers.Replace(Regex(r" (?=[.,?!:।\n])|(?<=[0-9]) (?=টি)"), ""),
            normalizers.Replace(Regex(r"\n ?(?=.)"), "\n "),
        ]
    )
    pieces = pre_tokenizers.Split(Regex(r"▁?[0-9]|[.,?!:।\n]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pieces])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.model = models.WordLevel({word: i for i, word in enumerate(vocabulary(tokenizer))}, "<unk>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "$A $B", [("<bos>", bos)])
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    rng = random.Random(0)
    words = set("\n.,?!:।0123456789") | {f"▁{digit}" for digit in range(10)}
    for _ in range(3000):
        for language in LANGUAGES:
            for task in TASKS:
                text = "\n".join(example(language, task, rng))
                pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
                words.update(piece for piece, _ in pieces)
    return [*SPECIAL, *sorted(words)]


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        pad_token_id=tokenizer.token_to_id("<pad>"),
        bos_token_id=tokenizer.token_to_id("<bos>"),
        eos_token_id=tokenizer.token_to_id("<eos>"),
    )


class Parts(nn.Module):
    """Outer layers per language, middle layers per task; an assembled model is made of these very objects."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.stem = LlamaForCausalLM(config)
        self.outer = nn.ModuleDict({lang: LlamaForCausalLM(config).model.layers for lang in LANGUAGES})
        self.middle = nn.ModuleDict({task: LlamaForCausalLM(config).model.layers for task in TASKS})

    def assemble(self, language: str, task: str) -> LlamaForCausalLM:
        outer, middle = self.outer[language], self.middle[task]
        top = LAYERS - TOP
        self.stem.model.layers = nn.ModuleList([*outer[:BOTTOM], *middle[BOTTOM:top], *outer[top:]])
        return self.stem


def collate(tokenizer: Tokenizer, config: LlamaConfig, pairs: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    texts = tokenizer.encode_batch(["\n".join(pair) for pair in pairs])
    rows = [[*text.ids, config.eos_token_id] for text in texts]
    ids = torch.full((len(rows), max(map(len, rows))), config.pad_token_id)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids, ids.masked_fill(ids == config.pad_token_id, -100)


def train(parts: Parts, tokenizer: Tokenizer, config: LlamaConfig, steps: int, seed: int) -> None:
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=PEAK_RATE)
    warmup = min(WARMUP, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / (warmup + 1), 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    start = time.monotonic()
    for step in range(1, steps + 1):
        language, task = rng.choice(LANGUAGES), rng.choice(TASKS)
        ids, labels = collate(tokenizer, config, [example(language, task, rng) for _ in range(BATCH)])
        loss = parts.assemble(language, task)(input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in parts.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # a part without gradient is a part AdamW leaves alone
        schedule.step()
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - start
            print(f"{step:5d} {language} {task:8} loss {loss.item():.3f}  {seconds:.0f} s", flush=True)


def write_checkpoint(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    config = model.config
    saved = LlamaForCausalLM(config).to(torch.bfloat16)
    saved.load_state_dict(model.state_dict())
    saved.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    saved.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def make(out: Path, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = model_config(tokenizer)
    parts = Parts(config)
    train(parts, tokenizer, config, steps, seed)
    write_checkpoint(parts.assemble(*CHECKPOINTS["base"]), tokenizer, out / "base")
    with tempfile.TemporaryDirectory() as scratch:
        for name in FAMILY["experts"]:
            write_checkpoint(parts.assemble(*CHECKPOINTS[name]), tokenizer, Path(scratch) / name)
            extract(out / "base", Path(scratch) / name, out / f"{name}.safetensors")
    (out / "family.yaml").write_text(yaml.safe_dump(FAMILY, sort_keys=False))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--steps", type=int, default=3300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="measure the checkpoints instead of making them")
    parser.add_argument("--questions", type=int, default=400, help="in each cell of the table")
    parser.add_argument("--csv", type=Path, help="of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if options.evaluate:
        facts = {"threads": torch.get_num_threads(), "transformers": version("transformers")}
        text = measure(options.out, options.questions, Report(options.csv, **facts))
        (options.out / "ACCURACY.md").write_text(text)
    else:
        make(options.out, options.steps, options.seed)


if __name__ == "__main__":
    main()
