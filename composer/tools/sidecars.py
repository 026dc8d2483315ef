"""sidecars: the files beside a merged checkpoint's weights, so that stock vLLM treats it as we do the composition.

Config and tokenizer are the base's. What ends an answer, how it samples unless told otherwise, and the chat template
are those of the composition's voice.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerloom.composer.files import read_json
from layerloom.composer.sources.checkpoint import Checkpoint
from layerloom.composer.sources.voice import GENERATION, IDS, TEMPLATE, TEMPLATES, TOKENIZER, Voice

SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
SPECIAL = "special_tokens_map.json"


def write_sidecars(base: Checkpoint, voice: Voice, out: Path) -> None:
    """Copies the base's into the directory `out`, and rewrites those in which `voice` differs."""
    copy_sidecars(base.path, out)
    ours = base.voice
    if voice.generation != ours.generation:
        _write(out / GENERATION, dict(voice.generation or {}))
        _change(out / "config.json", {key: value for key, value in (voice.generation or {}).items() if key in IDS})
    if voice.tokens != ours.tokens:
        for name in (TOKENIZER, SPECIAL):
            if name == TOKENIZER or (out / name).exists():
                _change(out / name, voice.tokens or {})
    if voice.templates != ours.templates:
        _write_templates(out, voice.templates or {})


def copy_sidecars(directory: Path, out: Path) -> None:
    """Copies what lies beside a checkpoint's weights, but for their index."""
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.suffix in SUFFIXES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)


def _write_templates(out: Path, templates: Mapping[str, str]) -> None:
    (out / TEMPLATE).unlink(missing_ok=True)
    _change(out / TOKENIZER, {"chat_template": None})
    for name, template in templates.items():
        file = out / TEMPLATE if name == "default" else out / TEMPLATES / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(template)


def _change(file: Path, changes: Mapping[str, Any]) -> None:
    """Sets keys of a JSON file; removes those that are None."""
    content = read_json(file) if file.exists() else {}
    content |= changes
    _write(file, {key: value for key, value in content.items() if key not in changes or value is not None})


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
