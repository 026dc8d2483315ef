"""What to compose and where it lives: names, recipes, families, plans, pages, merged checkpoints."""

from .errors import ComposeError, ComposeWarning, FamilyError, UnknownName
from .family.family import Expert, Family
from .family.names import Composition
from .family.plan import KINDS, Blend, LayerBlend, Plan, describe_blend, kind_of
from .pages.bank import Bank
from .pages.engine import Engine
from .sources.adapter import Adapter
from .sources.archive import Archive, ArchiveFile
from .sources.checkpoint import Checkpoint, TensorInfo
from .sources.manifest import Manifest
from .sources.source import Source, open_source
from .tools.convert import Converted, convert
from .tools.extract import extract
from .tools.inspect import Report, Row, inspect
from .tools.merge import Difference, merge, tensors, verify
from .tools.mergekit.imported import Imported, import_mergekit
from .tools.picture import draw
from .tools.quality import Quality, quality
from .tools.suggest import Suggestion, suggest

__all__ = [
    "KINDS",
    "Adapter",
    "Archive",
    "ArchiveFile",
    "Bank",
    "Blend",
    "Checkpoint",
    "ComposeError",
    "ComposeWarning",
    "Composition",
    "Converted",
    "Difference",
    "Engine",
    "Expert",
    "Family",
    "FamilyError",
    "Imported",
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
    "convert",
    "describe_blend",
    "draw",
    "extract",
    "import_mergekit",
    "inspect",
    "kind_of",
    "merge",
    "open_source",
    "quality",
    "suggest",
    "tensors",
    "verify",
]
