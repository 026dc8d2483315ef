"""loader: vLLM's way to the base's weights, through the reader that everything else of the base is read with.

vLLM's own takes other files where a directory has several copies (consolidated.safetensors, shards beside a single
file), and maps them, so that a file cut short meanwhile ends the process.
"""

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import DefaultModelLoader

from layerloom.composer import Checkpoint

FORMAT = "layerloom"


class BaseLoader(DefaultModelLoader):
    """`--load-format layerloom`: the tensors of composer's `Checkpoint`, in the order they lie in."""

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, *args: Any, **kwargs: Any) -> nn.Module:
        if getattr(model_config, "word_embeddings_untied_by_checkpoint", False):
            # vLLM has seen a head in a file whose config ties it. `Checkpoint` has seen that it is the embedding.
            for config in (model_config.hf_config, model_config.hf_config.get_text_config()):
                config.tie_word_embeddings = True
            model_config.word_embeddings_untied_by_checkpoint = False
        return super().load_model(vllm_config, model_config, *args, **kwargs)

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        self.counter_before_loading_weights = time.perf_counter()
        checkpoint = Checkpoint(Path(model_config.model))
        for name in checkpoint.tensors:
            yield name, checkpoint.read(name)
