"""worker: vLLM's worker with compositions in place of LoRA adapters."""

from types import MethodType
from typing import Any

import torch
from torch import nn
from vllm.config import CompilationMode, VllmConfig
from vllm.v1.worker.cpu_worker import CPUWorker as VllmCPUWorker

from layerloom.composer import Family

from .manager import CompositionManager
from .packed import PackedPages


def load_compositions(runner: Any, model: nn.Module, vllm_config: VllmConfig, device: torch.device) -> nn.Module:
    """Takes the place of the model runner's `load_lora_model`, on that one runner."""
    family = Family.load(vllm_config.additional_config["layerloom"]["family"])
    capacity = vllm_config.lora_config.max_cpu_loras
    runner.lora_manager = CompositionManager(family, PackedPages(model, family.depth), capacity)
    return model


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


class CPUWorker(VllmCPUWorker):
    """Serves the compositions of `additional_config["layerloom"]["family"]` on a CPU."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        # vLLM turns torch.compile off for LoRA on a CPU, because LoRA kernels do not trace; ours are opaque ops.
        if vllm_config.additional_config["layerloom"]["compile"]:
            vllm_config.compilation_config.mode = CompilationMode.DYNAMO_TRACE_ONCE
        super().__init__(vllm_config, *args, **kwargs)

    def init_device(self) -> None:
        super().init_device()
        self.model_runner.load_lora_model = MethodType(load_compositions, self.model_runner)
        self.model_runner._get_prompt_logprobs_dict = MethodType(prompt_logprobs, self.model_runner)
