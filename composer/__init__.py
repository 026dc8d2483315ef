"""What to compose and where it lives: names, recipes, families, plans, pages, merged checkpoints."""

from .bank import Bank, Engine
from .checkpoint import Checkpoint, TensorInfo
from .errors import ComposeError, FamilyError, UnknownName
from .family import Expert, Family
from .merge import Difference, merge, tensors, verify
from .names import Composition
from .plan import KINDS, Blend, LayerBlend, Plan, describe_blend, kind_of

__all__ = [
    "KINDS",
    "Bank",
    "Blend",
    "Checkpoint",
    "ComposeError",
    "Composition",
    "Difference",
    "Engine",
    "Expert",
    "Family",
    "FamilyError",
    "LayerBlend",
    "Plan",
    "TensorInfo",
    "UnknownName",
    "describe_blend",
    "kind_of",
    "merge",
    "tensors",
    "verify",
]
