"""fine_tune: trains all weights of a causal language model for a number of minutes, on a GPU or a CPU."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

Example = tuple[list[int], list[int]]
"""Token ids, and the labels of each: an id, or IGNORED."""

IGNORED = -100
BATCH = 1024
"""Tokens, padding included."""

WARM = 0.05
"""The share of the time in which the learning rate goes up; then it goes down to 0 as a cosine."""


def fine_tune(base: Path, to: Path, examples: Sequence[Example], minutes: float, rate: float) -> dict[str, float]:
    """Writes a checkpoint in bf16, with the base's tokenizer left out. Says steps, tokens, and the loss in nats."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # On a CPU, the gradient of torch's own attention is slower than that of its matrix products.
    attention = "sdpa" if device == "cuda" else "eager"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    fast = fast_bf16()
    losses, tokens, clock = [], 0, time.monotonic if device == "cuda" else own_time
    began = clock()
    for ids, labels in batches(examples):
        spent = (clock() - began) / (60 * minutes)
        if spent >= 1:
            break
        optimizer.param_groups[0]["lr"] = rate * scale(spent)
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            # Only where something is learned: the head is a fifth of this model.
            hidden = model.model(ids.to(device), use_cache=False).last_hidden_state[:, :-1]
            wanted = labels[:, 1:].to(device)
            taught = wanted != IGNORED
            loss = cross_entropy(model.lm_head(hidden[taught]).float(), wanted[taught])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        tokens += ids.numel()
        if len(losses) % 10 == 1:
            print(f"{to.name}: step {len(losses)}, {clock() - began:.0f} s, loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(to)
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    seconds = clock() - began
    return {"steps": len(losses), "tokens": tokens, "seconds": seconds, "first loss": first, "last loss": last}


def fast_bf16() -> bool:
    """Whether bfloat16 is faster here. Some CPUs have AMX for it; others take a hundred times as long."""
    return torch.cuda.is_available() or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def own_time() -> float:
    """Seconds that all cores of this process have computed: of a CPU, others may have a share."""
    return time.process_time() / torch.get_num_threads()


def scale(spent: float) -> float:
    """Of the learning rate, when this share of the time has gone."""
    return spent / WARM if spent < WARM else 0.5 + 0.5 * math.cos(math.pi * (spent - WARM) / (1 - WARM))


def batches(examples: Sequence[Example], seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels, [examples, length]: of about the same length, in another order each time, without end."""
    drawn = random.Random(seed)
    while True:
        # Neighbours in length, but not always the same ones.
        order = sorted(range(len(examples)), key=lambda row: len(examples[row][0]) + drawn.random() * 16)
        found: list[list[Example]] = [[]]
        for row in order:
            if (len(found[-1]) + 1) * len(examples[row][0]) > BATCH and found[-1]:
                found.append([])
            found[-1].append(examples[row])
        drawn.shuffle(found)
        for batch in found:
            length = max(len(ids) for ids, _ in batch)
            yield (
                torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch]),
                torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in batch]),
            )
