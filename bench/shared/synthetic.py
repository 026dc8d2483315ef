"""synthetic: pairs of checkpoints with the tensors of a Llama and random numbers in them, as large as one likes."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

# A Llama of 193 M parameters at 16 layers, for engines.
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
}

BASE_STD, DELTA_STD = 0.02, 1e-4


def write_pair(root: Path, hidden: int, depth: int) -> None:
    """Writes root/base and root/expert in bf16, a file for each layer. No more than a layer is in memory.

    Each number of the base is drawn with a standard deviation of 0.02, and moved by one with 1e-4. A layer
    has 10.75·hidden² numbers (22.5 MB at 1024, 90 MB at 2048), the stem 32·hidden².
    """
    generator = torch.Generator().manual_seed(0)
    stem = {"model.embed_tokens": (16 * hidden, hidden), "lm_head": (16 * hidden, hidden), "model.norm": (hidden,)}
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (11 * hidden // 4, hidden),
        "mlp.up_proj": (11 * hidden // 4, hidden),
        "mlp.down_proj": (hidden, 11 * hidden // 4),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    files = [stem, *({f"model.layers.{i}.{name}": shape for name, shape in layer.items()} for i in range(depth))]
    weight_map = {}
    for model in ("base", "expert"):
        (root / model).mkdir(parents=True)
    for number, shapes in enumerate(files, start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        base = {f"{name}.weight": BASE_STD * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        weight_map |= dict.fromkeys(base, file)
        save_file({name: tensor.bfloat16() for name, tensor in base.items()}, root / "base" / file)
        for tensor in base.values():
            tensor.copy_(tensor.bfloat16() + DELTA_STD * torch.randn(tensor.shape, generator=generator))
        save_file({name: tensor.bfloat16() for name, tensor in base.items()}, root / "expert" / file)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": depth,
        "tie_word_embeddings": False,
    }
    for model in ("base", "expert"):
        (root / model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (root / model / "config.json").write_text(json.dumps(config))
