"""plugin: what vLLM loads in each of its processes."""

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread
from typing import Any

import psutil
import torch
import vllm
from packaging.version import Version
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import register_model_loader

from layerloom.composer import ComposeError
from layerloom.server import importing
from layerloom.server.options import OURS
from layerloom.server.versions import NEWEST, OLDEST, WANTED

from . import (
    loader,
    ops,  # noqa: F401  (registers the operators)
)
from .packed import PackedLinearMethod
from .paged import PagedEmbeddingMethod, PagedLinearMethod

MOMENT, SOON = 0.2, 3.0
"""Seconds: until a dead process' children have another parent, and until this process ends whatever it does."""


class LayerloomConfig(QuantizationConfig):
    """Not a quantization: the way vLLM offers to own the weights of linear layers and embeddings."""

    def get_name(self) -> str:
        return "layerloom"

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LayerloomConfig":
        return cls()

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        if isinstance(layer, LinearBase):
            packed = get_current_vllm_config().additional_config["layerloom"]["pages"] == "packed"
            return PackedLinearMethod() if packed else PagedLinearMethod()
        if isinstance(layer, VocabParallelEmbedding):
            return PagedEmbeddingMethod()
        if isinstance(layer, AttentionLayerBase):
            return None
        raise ComposeError(
            f"{prefix} ({type(layer).__name__}) cannot be paged: layerloom serves unquantised dense decoders; "
            "fused MoE experts are not supported"
        )


def register() -> None:
    """Entry point `vllm.general_plugins`. Changes no number of an engine that does not ask for layerloom."""
    importing.end()
    check_version(vllm.__version__)
    if torch.cpu._is_amx_tile_supported():
        # vLLM's attention uses AMX and never asks Linux for it: where nothing else has, SIGILL ends the worker.
        torch.cpu._init_amx()
    register_quantization_config("layerloom")(LayerloomConfig)
    register_model_loader(loader.FORMAT)(loader.BaseLoader)
    parent = multiprocessing.parent_process()
    if parent is not None and OURS in os.environ:
        if current_thread() is main_thread():
            # Ctrl-C reaches all processes of a terminal, and vLLM's workers would end in the middle of a step. Whoever
            # has started the engine says when it ends.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        Thread(target=end_with, args=(parent,), name="layerloom-parent", daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    """Ends this process soon after the one that started it: when that is killed, vLLM's engines would stay for ever.

    So does the coordinator of several engines, which loads no plugin.
    """
    parent.join()
    time.sleep(MOMENT)
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            # Of those that the same death has left to the same process; another server's still has its own parent.
            same = process.ppid() == os.getppid() and os.getpgid(process.pid) == os.getpgrp()
            if same and "VLLM::DPCoordinator" in " ".join(process.cmdline()):
                process.terminate()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SOON)
    os._exit(1)


def check_version(version: str) -> None:
    if not OLDEST <= Version(version) < NEWEST:
        raise RuntimeError(f"layerloom works with vLLM {WANTED}; installed is {version}")
