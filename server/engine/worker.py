"""worker: vLLM's worker with compositions in place of LoRA adapters."""

import multiprocessing
import os
from contextlib import suppress
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import CompilationMode, VllmConfig
from vllm.distributed import get_world_group
from vllm.v1.sample import sampler
from vllm.v1.worker.cpu_worker import CPUWorker as VllmCPUWorker
from vllm.v1.worker.gpu_worker import Worker as VllmGPUWorker

from layerloom.server.options import load_family

from .arena import ArenaPages
from .manager import CompositionManager, EnginePages
from .ops import know_slots
from .packed import PackedPages


def load_compositions(runner: Any, model: nn.Module, vllm_config: VllmConfig, device: torch.device) -> nn.Module:
    """Takes the place of the model runner's `load_lora_model`, on that one runner."""
    settings = vllm_config.additional_config["layerloom"]
    family = load_family(settings)
    lora = vllm_config.lora_config
    if settings["pages"] == "packed":
        pages: EnginePages = PackedPages(model, family.depth)
    else:
        # The base is one more than the adapters that vLLM counts.
        rows = vllm_config.scheduler_config.max_num_batched_tokens
        pages = ArenaPages(model, family.depth, lora.max_loras + 1, rows, family.packings())
    cores = cores_of_engine()
    runner.lora_manager = CompositionManager(
        family,
        pages,
        lora.max_cpu_loras,
        lora.max_loras,
        settings["bank_memory"],
        settings["allow_recipes"],
        cores,
        spare_of(cores, settings["engines"]),
        partial(load_family, settings),
    )
    know_slots(model, vllm_config.compilation_config.static_forward_context)
    return model


def cores_of_engine() -> set[int]:
    """Those that this worker's engine may use: vLLM binds a worker to some of them before any code of it runs."""
    parent = multiprocessing.parent_process()
    with suppress(OSError, AttributeError):  # it has ended; not Linux
        return os.sched_getaffinity(0 if parent is None else parent.pid or 0)
    return set()


def spare_of(cores: set[int], engines: int) -> set[int]:
    """Those of the engine's cores that no worker is bound to; none where there are several engines."""
    if engines > 1:
        return set()
    mine = os.sched_getaffinity(0) if cores else set()
    group = get_world_group()
    everyone: list[set[int]] = [mine] * group.world_size
    if group.world_size > 1:
        torch.distributed.all_gather_object(everyone, mine, group=group.cpu_group)
    return cores.difference(*everyone)


def prompt_logprobs(runner: Any, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
    """vLLM computes prompt log probabilities request by request: each gets the output head of its composition."""
    pending, result = runner.num_prompt_logprobs, {}
    for request_id in list(pending):
        index = runner.input_batch.req_id_to_index.get(request_id)
        adapter_id = 0 if index is None else int(runner.input_batch.request_lora_mapping[index])
        runner.num_prompt_logprobs = {request_id: pending[request_id]}
        try:
            with runner.lora_manager.sampling_for(adapter_id):
                result |= type(runner)._get_prompt_logprobs_dict(runner, hidden_states, num_scheduled_tokens)
            if request_id not in runner.num_prompt_logprobs:
                del pending[request_id]
        finally:
            runner.num_prompt_logprobs = pending
    return result


def with_rows_of(manager: CompositionManager, compute: Any) -> Any:
    """The same for vLLM's second model runner, which asks for the logits of some rows of the hidden states."""

    def computed(logits_of: Any, hidden_states: torch.Tensor, *args: Any) -> Any:
        def logits_of_rows(rows: torch.Tensor) -> Any:
            first = (rows.storage_offset() - hidden_states.storage_offset()) // hidden_states.stride(0)
            with manager.sampling_tokens(first, len(rows)):
                return logits_of(rows)

        return compute(logits_of_rows, hidden_states, *args)

    return computed


def count_at_least(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How many of each row's [n, vocabulary] numbers are not less than its value [n, 1].

    vLLM's own, for logprobs, is compiled when it is first asked for, and that request waits for up to 17 s.
    """
    # Sums of int64 take 8 times as long.
    return (rows >= values).sum(-1, dtype=torch.int32).long()


class Compositions:
    """Mixed into a worker of vLLM's: serves the compositions of `additional_config["layerloom"]["family"]`."""

    def init_device(self) -> None:
        super().init_device()
        runner = self.model_runner
        runner.load_lora_model = MethodType(load_compositions, runner)
        if hasattr(runner, "_get_prompt_logprobs_dict"):
            runner._get_prompt_logprobs_dict = MethodType(prompt_logprobs, runner)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        # What servers call on every worker, by name.
        manager = self.model_runner.lora_manager
        self.hold_composition, self.release_composition = manager.hold, manager.release
        self.evict_composition, self.pin_composition = manager.evict, manager.pin_adapter
        self.report_compositions, self.renew_family = manager.report, manager.renew
        self.vote_on_family, self.look_at_families = manager.families.vote, manager.families.board
        state = getattr(self.model_runner, "lora_state", None)
        if state is not None:
            # vLLM's second model runner keeps 32 bits of an adapter id, and everything else 64.
            state.lora_ids = state.lora_ids.astype(np.int64)
        of_prompts = getattr(self.model_runner, "prompt_logprobs_worker", None)
        for name in ("compute_prompt_logprobs", "compute_prompt_token_id_logprobs"):
            if hasattr(of_prompts, name):
                setattr(of_prompts, name, with_rows_of(self.model_runner.lora_manager, getattr(of_prompts, name)))


class CPUWorker(Compositions, VllmCPUWorker):
    """On a CPU."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        # vLLM turns torch.compile off for LoRA on a CPU, because LoRA kernels do not trace; ours are opaque ops.
        if vllm_config.additional_config["layerloom"]["compile"]:
            vllm_config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
        if hasattr(sampler, "batched_count_greater_than"):
            sampler.batched_count_greater_than = count_at_least
        super().__init__(vllm_config, *args, **kwargs)


class GPUWorker(Compositions, VllmGPUWorker):
    """On a GPU, with either of vLLM's model runners."""
