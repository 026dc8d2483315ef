"""plan: which blend of experts each layer of a composition is, as pure data."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from layerloom.composer.errors import ComposeError
from layerloom.kernels.compose import left_by

Blend = tuple[tuple[str, float], ...]
"""(expert, weight) sorted by expert, no zero weights; the base has the rest, so () is the base alone."""

Residency = Literal["assembled", "delta"]
"""How a composition's layers are kept in the engine: whole, or packed beside the base's where they can be."""

KINDS = ("attention", "mlp", "norm")


def make_blend(weights: Mapping[str, float]) -> Blend:
    """The canonical blend of {expert or "base": weight}. Raises ComposeError unless 0 ≤ w and Σw ≤ 1.

    Σw counts the experts and not the base. When the base is given a weight, it must be what is left.
    """
    given = ", ".join(f"{expert}: {weight}" for expert, weight in weights.items())
    if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights.values()):
        raise ComposeError(f"weights must be finite and not negative: {{{given}}}")
    experts = {expert: weight for expert, weight in weights.items() if expert != "base"}
    # Room for decimals such as 0.35 + 0.35 + 0.3, which binary fractions sum to a little over 1.
    if math.fsum(experts.values()) > 1.0 + 1e-9:
        raise ComposeError(f"weights sum to more than 1: {{{given}}}")
    if "base" in weights and abs(math.fsum(weights.values()) - 1.0) > 1e-9:
        raise ComposeError(f"weights with the base among them must sum to 1: {{{given}}}")
    return tuple(sorted((expert, float(weight)) for expert, weight in experts.items() if weight))


def describe_blend(blend: Blend) -> str:
    """For people: "swahili", "0.5 math + 0.5 swahili", "base"."""
    rest = left_by([weight for _, weight in blend])
    terms = [*([("base", rest)] if rest else []), *blend]
    if len(terms) == 1 and terms[0][1] == 1.0:
        return terms[0][0]
    return " + ".join(f"{weight:g} {expert}" for expert, weight in terms)


@dataclass(frozen=True)
class LayerBlend:
    """The blend of each kind of module in one layer."""

    attention: Blend
    mlp: Blend
    norm: Blend

    @classmethod
    def all(cls, blend: Blend) -> "LayerBlend":
        return cls(blend, blend, blend)

    @property
    def uniform(self) -> Blend | None:
        """The one blend of all kinds, or None when they differ."""
        return self.attention if self.attention == self.mlp == self.norm else None

    @property
    def alone(self) -> str | None:
        """The expert that the whole layer is as it is, or None."""
        return self.uniform[0][0] if self.uniform and [weight for _, weight in self.uniform] == [1.0] else None

    def of(self, kind: str) -> Blend:
        """The blend of one of KINDS."""
        return {"attention": self.attention, "mlp": self.mlp, "norm": self.norm}[kind]

    def describe(self) -> str:
        """For people: as describe_blend, kind by kind where they differ."""
        if self.uniform is not None:
            return describe_blend(self.uniform)
        return ", ".join(f"{kind}: {describe_blend(self.of(kind))}" for kind in KINDS)


@dataclass(frozen=True)
class Plan:
    """What a composition is made of. The digest says which weights come out, whatever the name is."""

    name: str
    layers: tuple[LayerBlend, ...]
    stem: Blend
    digest: str
    residency: Residency = "assembled"

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts it needs, in order of name."""
        return used_experts(self.layers, self.stem)

    @property
    def is_base(self) -> bool:
        return not self.experts


def make_plan(
    name: str,
    layers: Iterable[LayerBlend],
    stem: Blend,
    revisions: Mapping[str, str],
    residency: Residency = "assembled",
) -> Plan:
    """A plan with its digest: sha256 over the blends and the revisions of the base and of the experts used.

    Residency is in it too, because x·B + x·Δ̂ is rounded elsewhere than x·(B + Δ̂).
    """
    layers = tuple(layers)
    content = {
        "rule": "W = (1-Σw)·B + Σ w·E in fp32, by name, rounded once",
        "revisions": {source: revisions[source] for source in ("base", *used_experts(layers, stem))},
        "layers": [[layer.of(kind) for kind in KINDS] for layer in layers],
        "stem": stem,
    }
    if residency != "assembled":
        content["residency"] = residency
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Plan(name, layers, stem, digest, residency)


def used_experts(layers: Iterable[LayerBlend], stem: Blend) -> tuple[str, ...]:
    blends = [stem, *(layer.of(kind) for layer in layers for kind in KINDS)]
    return tuple(sorted({expert for blend in blends for expert, _ in blend}))


def kind_of(tensor: str) -> str:
    """The kind of the module that owns a parameter, from its Hugging Face or vLLM name.

    "norm" if the module's own name has "norm" in it (q_norm, input_layernorm), else "attention" inside an
    attention module (self_attn), else "mlp".
    """
    *path, leaf = tensor.lower().split(".")
    if "norm" in (path[-1] if path else leaf):
        return "norm"
    return "attention" if any(part.endswith(("attn", "attention")) for part in path) else "mlp"
