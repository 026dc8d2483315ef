"""What to compose and where it lives: names, recipes, families, plans, pages, merged checkpoints."""

from .adapter import Adapter
from .archive import Archive, ArchiveFile
from .bank import Bank, Engine
from .checkpoint import Checkpoint, TensorInfo
from .errors import ComposeError, FamilyError, UnknownName
from .extract import extract
from .family import Expert, Family
from .inspect import Report, Row, inspect
from .manifest import Manifest
from .merge import Difference, merge, tensors, verify
from .names import Composition
from .picture import draw
from .plan import KINDS, Blend, LayerBlend, Plan, describe_blend, kind_of
from .quality import Quality, quality
from .source import Source, open_source
from .suggest import Suggestion, suggest

__all__ = [
    "KINDS",
    "Adapter",
    "Archive",
    "ArchiveFile",
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
    "Manifest",
    "Plan",
    "Quality",
    "Report",
    "Row",
    "Source",
    "Suggestion",
    "TensorInfo",
    "UnknownName",
    "describe_blend",
    "draw",
    "extract",
    "inspect",
    "kind_of",
    "merge",
    "open_source",
    "quality",
    "suggest",
    "tensors",
    "verify",
]
