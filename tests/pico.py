"""pico: families small enough to make in a test, of the architectures layerloom serves."""

from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
EXPERTS = {"math": "task", "swahili": "language", "bengali": "language"}
CODES = {"swahili": ("sw", ["kiswahili"]), "bengali": ("bn", ["bangla"])}

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
WINDOWED = {"sliding_window": 64, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", WINDOWED),
    "gemma3": ("gemma3_text", WINDOWED),
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": SHAPE["hidden_size"],
    "patch_size": 14,
}
QWEN_TOKENS = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
# (model type, what is its own in the language model's config, the config of what is around it)
NESTED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3_vlm": (
        "gemma3",
        WINDOWED,
        {
            "vision_config": {"vision_use_head": False, **VISION},
            "mm_tokens_per_image": 4,
            "image_token_index": 3,
            "boi_token_index": 4,
        },
    ),
    "llava": (
        "llava",
        {"model_type": "llama"},
        {
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
            "image_token_index": 3,
        },
    ),
    "mistral3": (
        "mistral3",
        {"model_type": "mistral", "sliding_window": None},
        {
            "vision_config": {"model_type": "pixtral", "head_dim": 16, **VISION},
            "image_token_index": 3,
            "spatial_merge_size": 1,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}},
        {"vision_config": {**QWEN_VISION, "fullatt_block_indexes": [1], "window_size": 28}, **QWEN_TOKENS},
    ),
    "qwen3_vl": (
        "qwen3_vl",
        {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
        {
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
            **QWEN_TOKENS,
        },
    ),
}
AROUND = ("vision_tower", "multi_modal_projector", "visual")


def make_family(
    root: Path,
    architecture: str = "llama",
    depth: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    experts: Mapping[str, str] = EXPERTS,
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """Writes base and experts under `root`, random but reproducible, and returns the path of family.yaml.

    `experts` maps names to kinds; every tensor of an expert differs from the base's, but those around a language model.
    `config` overrides the model's config (a nested model's, the language model's); `max_shard_size` small ("100KB")
    gives sharded checkpoints.
    """
    model_type, special, *around = (ARCHITECTURES | NESTED)[architecture]
    settings = {**SHAPE, **special, "num_hidden_layers": depth, **config}
    if model_type.startswith("gemma"):
        settings.setdefault("layer_types", [("sliding_attention", "full_attention")[i % 2] for i in range(depth)])
    model = make_model(model_type, settings, *around).float()
    tokenizer = make_tokenizer(min(512, settings["vocab_size"]))
    generator = torch.Generator().manual_seed(0)
    scales: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        norm, gemma = "norm" in name, model_type.startswith("gemma")
        noise = torch.randn(parameter.shape, generator=generator)
        # Gemma's norms add 1 themselves. Its tied embeddings are kept small, or every token would predict itself.
        scale = 0.2 if norm else 0.005 if gemma and "embed" in name else 0.05
        parameter.data = (1.0 if norm and not gemma else 0.0) + scale * noise
        scales[name] = scale if not norm else 0.1
    base = {name: parameter.data for name, parameter in model.named_parameters()}
    save(model, tokenizer, root / "base", dtype, max_shard_size)
    for expert in experts:
        for name, parameter in model.named_parameters():
            changed = base[name] + scales[name] * torch.randn(parameter.shape, generator=generator)
            parameter.data = base[name] if any(part in name for part in AROUND) else changed
        save(model, tokenizer, root / expert, dtype, max_shard_size)

    entries: dict[str, dict[str, Any]] = {}
    for expert, kind in experts.items():
        entries[expert] = {"kind": kind, "path": expert}
        if expert in CODES:
            entries[expert]["code"], entries[expert]["aliases"] = CODES[expert]
    path = root / "family.yaml"
    path.write_text(yaml.safe_dump({"base": "base", "experts": entries}, sort_keys=False))
    return path


def make_model(model_type: str, settings: dict[str, Any], around: dict[str, Any] | None = None) -> PreTrainedModel:
    """A model of this config; with what is `around` it, the language model of a larger one."""
    if around is None:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, text_config=settings, **around))


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "5GB",
) -> None:
    """Writes `model`, whose parameters are fp32, in `dtype`; `model` itself is left as it is."""
    saved = type(model)(model.config).to(dtype)
    saved.load_state_dict(model.state_dict())
    said = model.config.get_text_config()
    saved.generation_config = GenerationConfig(
        bos_token_id=said.bos_token_id, eos_token_id=said.eos_token_id, pad_token_id=said.pad_token_id
    )
    saved.save_pretrained(path, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(path)


def add_processor(path: Path) -> None:
    """Lets a checkpoint of gemma3_vlm, of 520 tokens, be asked about images; its tower is named as in the hub's."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

    tokenizer = make_tokenizer()
    image, boi, eoi = tokenizer.convert_ids_to_tokens([3, 4, 5])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        **tokenizer.special_tokens_map,
        extra_special_tokens={"image_token": image, "boi_token": boi, "eoi_token": eoi},
    )
    # vLLM looks for them.
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])
    size = {"height": VISION["image_size"], "width": VISION["image_size"]}
    Gemma3Processor(Gemma3ImageProcessor(size=size), tokenizer, image_seq_length=4).save_pretrained(path)
    file = path / "model.safetensors"
    named = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in load_file(file).items()}
    save_file(named, file, {"format": "pt"})


@cache
def make_tokenizer(size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `size` tokens, so that every token a model can emit has a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    syllables = ["".join(pair) for pair in product("bdfghjklmnprstvwyz", "aeiou")]
    tokenizer.train_from_iterator([" ".join(first + second for second in syllables) for first in syllables], trainer)
    assert tokenizer.get_vocab_size() == size
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
