"""spelling: the keys of a config.json that can change numbers, each in one way."""

import re
from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]

SKIPPED = frozenset(
    (
        "architectures", "attn_implementation", "auto_map", "cache_implementation", "chunk_size_feed_forward",
        "dtype", "experts_implementation", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
        "gradient_checkpointing", "id2label", "initializer_cutoff_factor", "initializer_range", "label2id",
        "name_or_path", "num_labels", "output_attentions", "output_hidden_states",
        "output_router_logits", "prefix", "pretraining_tp", "problem_type", "processor_class", "pruned_heads",
        "quantization_config", "return_dict", "router_aux_loss_coef", "router_z_loss_coef",
        "task_specific_params", "tf_legacy_loss", "tokenizer_class", "torch_dtype", "torchscript",
        "transformers_version", "transformers.js_config", "use_bfloat16", "use_cache",
    )
)  # fmt: skip
SKIPPED_NAMES = re.compile(
    r"_.*|.*dropout|.*_(pdrop|dropout_prob)|.*layerdrop|unsloth_.*|(bos|eos|pad|sep|cls)_token_id"
)
# What the engine's models read though not every class declares it, and what an absent one is taken for. Biases show in
# the tensors.
ALSO_READ: Values = {
    "attention_sinks": None,
    "dual_chunk_attention_config": None,
    "is_causal": True,
    "layer_rope_theta": None,
    "layer_types": None,
    "logit_scale": 1.0,
    "qk_norm": False,
    "sliding_window": None,
    "use_bidirectional_attention": False,
}
# Keys of the kinds of RoPE; one that the kind of a config does not read is passed over.
LENGTH = "original_max_position_embeddings"
ROPE_KINDS = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor", LENGTH},
    "yarn": {"factor", LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"factor", LENGTH, "attention_factor", "short_factor", "long_factor"},
    "llama3": {"factor", LENGTH, "low_freq_factor", "high_freq_factor"},
}
ROPE_KEYS = set().union(*ROPE_KINDS.values())
ROPE_NAMES = {"su": "longrope", "mrope": "default", None: "default"}
ROPE_DEFAULTS = {"partial_rotary_factor": 1.0, "beta_fast": 32, "beta_slow": 1, "truncate": True}


def relevant(config: Mapping[str, Any]) -> Values:
    """The keys that are not skipped, in nested configs too."""
    return {
        key: relevant(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in SKIPPED and not SKIPPED_NAMES.fullmatch(key)
    }


def canonical(values: Values) -> Values:
    """One config's values with RoPE and windows written in one way; null is absent."""
    values = {key: value for key, value in values.items() if key != "model_type"}
    rope = values.pop("rope_parameters", None) or values.get("rope_scaling") or {}
    theta, partial = values.pop("rope_theta", None), values.pop("partial_rotary_factor", None)
    values.pop("rope_scaling", None)
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    kinds = set()
    # A few classes have one RoPE for each type of layer.
    for layers, keys in ({key: value for key, value in rope.items() if isinstance(value, dict)} or {"": rope}).items():
        found = _rope({"rope_theta": theta, "partial_rotary_factor": partial} | keys)
        kinds.add(found.get("rope_type"))
        if not layers and "rope_theta" in found:
            values["rope_theta"] = found.pop("rope_theta")
        values |= {f"rope_parameters.{layers}{'.' if layers else ''}{key}": found[key] for key in found}
    if not kinds & {"dynamic", "longrope"}:
        values.pop("max_position_embeddings", None)
    _set_windows(values)
    return _stated(ALSO_READ) | _stated(values)


def _stated(values: Values) -> Values:
    return {key: value for key, value in values.items() if value is not None}


def _rope(rope: Values) -> Values:
    """The keys of one RoPE that its kind reads, without those that have their default."""
    kind = rope.get("rope_type") or rope.get("type")
    kind = ROPE_NAMES.get(kind, kind) if isinstance(kind, str | None) else str(kind)
    if kind == "linear" and rope.get("factor") == 1:
        kind = "default"
    passed = ROPE_KEYS - ROPE_KINDS[kind] if kind in ROPE_KINDS else set()
    found = {
        key: value
        for key, value in rope.items()
        if key not in passed and key not in ("type", "rope_type") and value is not None
        if key not in ROPE_DEFAULTS or value != ROPE_DEFAULTS[key]
    }
    # A model without RoPE has no key of it.
    return {**found, "rope_type": kind} if found or kind != "default" else {}


def _set_windows(values: Values) -> None:
    """Says for every layer whether it has a window, and drops a window that no layer has."""
    types = values.get("layer_types")
    if values.get("use_sliding_window") is False:
        values["sliding_window"] = None
    if types is not None or values.get("sliding_window") is None:
        for key in ("use_sliding_window", "max_window_layers", "sliding_window_pattern"):
            values.pop(key, None)
    window = values.get("sliding_window")
    if not isinstance(types, list) or not types:
        types = ["sliding_attention" if window is not None else "full_attention"]
    if window is None:
        types = ["full_attention" if kind == "sliding_attention" else kind for kind in types]
    if not any("sliding" in str(kind) for kind in types):
        values.pop("sliding_window", None)
    values["layer_types"] = types[0] if all(kind == types[0] for kind in types) else types
