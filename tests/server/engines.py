"""engines: real vLLM engines for tests, stock or layerloom, in this process or in one of their own."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from layerloom.server import importing

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    # Small models on few cores: threads that wait for each other cost more than they bring.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
TESTS = Path(__file__).resolve().parent.parent
importing.begin()
PROMPTS = torch.randint(3, 500, (8, 20), generator=torch.Generator().manual_seed(1)).tolist()


IN_A_PROCESS = "vllm.model_executor.models.registry._run_in_subprocess"
"""What vLLM looks at a model's class with that it has not seen before: one that imports all of vLLM for it, lest this
one starts CUDA."""


@dataclass(frozen=True)
class Answer:
    """One continuation: its token ids and the logprob of each; of the prompt's tokens too where they were asked for."""

    tokens: list[int]
    logprobs: list[float]
    prompt: list[float] = field(default_factory=list)


def run(model: Path, *batches: tuple[Any, Any, Any], **options: Any) -> list[list[Any]]:
    """The outputs of (names, prompts, params) batches, one after another on one engine that is gone afterwards.

    `model` is a checkpoint directory for stock vLLM, with none of layerloom's options, or a family.yaml.
    """
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    from layerloom.server import Runtime

    def generated() -> list[list[Any]]:
        # In a frame of its own: the engine must be gone before the next one is built in this process.
        if model.suffix == ".yaml":
            with Runtime(model, **settings(options)) as runtime:
                return [runtime.generate(*batch) for batch in batches]
        llm = LLM(str(model), **settings(options))
        return [llm.generate(ids, params, use_tqdm=False) for _, ids, params in batches]

    # For the one collection below to look at what this engine has made, and at nothing that was there before.
    gc.freeze()
    try:
        with without_collecting(), mock.patch(IN_A_PROCESS, lambda look: look()):
            return generated()
    finally:
        gc.collect()
        if torch.distributed.is_initialized():
            with without_collecting():
                cleanup_dist_env_and_memory()


def without_collecting() -> Any:
    """vLLM collects garbage some nine times for each engine, and looks at all that was ever imported each time."""
    return mock.patch.multiple(gc, collect=mock.DEFAULT, freeze=mock.DEFAULT, unfreeze=mock.DEFAULT)


def settings(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": 1 << 26,
        "disable_log_stats": True,
        **options,
    }


def sampling(max_tokens: int = 24, **fields: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 1, **fields})


def prompts(ids: Sequence[list[int]] = PROMPTS) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": row} for row in ids]


def answers(outputs: Sequence[Any]) -> list[Answer]:
    def answer(output: Any) -> Answer:
        best = output.outputs[0]
        picked = [step[token].logprob for step, token in zip(best.logprobs, best.token_ids, strict=True)]
        steps = zip(output.prompt_logprobs or (), output.prompt_token_ids, strict=False)
        return Answer(list(best.token_ids), picked, [step[token].logprob for step, token in steps if step is not None])

    return [answer(output) for output in outputs]


def distance(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """The largest logprob difference over the tokens up to the first that differs."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        for token_a, token_b, x, y in zip(a.tokens, b.tokens, a.logprobs, b.logprobs, strict=True):
            worst = max(worst, abs(x - y))
            if token_a != token_b:
                break
    return worst


def in_child(job: dict[str, Any], **environment: str) -> list[Answer]:
    """Runs `job` in a process of its own: model (a directory or a family.yaml), names (one per prompt), options.

    It may have `sampling` too, fields of SamplingParams, `length`, of the prompts, and `image`, the size of one that
    each prompt begins with, where token 4 says so.
    """
    (found,) = in_one_child(job, **environment)
    return found


def in_one_child(*jobs: dict[str, Any], **environment: str) -> list[list[Answer]]:
    """Jobs of `in_child`, one after another in one process."""
    command = [sys.executable, __file__, json.dumps(jobs)]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"it ended with {done.returncode}\n{done.stderr[-4000:]}"
    return [[Answer(**row) for row in rows] for rows in json.loads(done.stdout.strip().splitlines()[-1])]


def interpret_triton() -> None:
    """Lets vLLM use Triton's interpreter where it wants a Triton for CPUs, which PyPI does not have."""
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpret_triton()
    print(json.dumps([[vars(answer) for answer in done(job)] for job in json.loads(sys.argv[1])]))


def done(job: dict[str, Any]) -> list[Answer]:
    names, params = job["names"], sampling(**job.get("sampling", {}))
    ids = [row[: job.get("length")] for row in PROMPTS[: len(names)]]
    asked: list[dict[str, Any]] = prompts(ids)
    for number, prompt in enumerate(asked if "image" in job else ()):
        content = np.random.default_rng(number).integers(0, 255, (job["image"], job["image"], 3), dtype=np.uint8)
        prompt["prompt_token_ids"] = [1, 4, *prompt["prompt_token_ids"]]
        prompt["multi_modal_data"] = {"image": Image.fromarray(content)}
    (outputs,) = run(Path(job["model"]), (names, asked, params), **job["options"])
    return answers(outputs)


if __name__ == "__main__":
    main()
