"""The JSON schema of family.yaml says what `read_entries` says, and is committed as it is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from pico import make_family

from layerloom.composer.errors import FamilyError
from layerloom.composer.family.entries import Loader, read_entries
from layerloom.composer.family.family import read_names
from layerloom.composer.family.schema import FILE, FILED, described, schema, written

ROOT = Path(__file__).parents[3]
START = "base: base\nexperts:\n  math: {kind: task, path: math}\n  swahili: {kind: language, code: sw, path: sw}\n"
RIGHT = (
    "",
    "recipe: {}",
    "recipe: {preset: lighton, bottom: 3, transition: 0, stem: average}",
    "recipe: {after_bottom: 1, before_top: 0, weight: 0.25, stem: {math: 0.5, base: 0.5}}",
    "recipe: {method: soup}",
    "recipe: {method: soup, weights: {task: 0.5, language: 1}, stem: task}",
    "recipe: {method: table, layers: {0: language, 1-2: {math: 0.3}, '3 - 7': {attention: math, mlp: base, norm: sw}}}",
    "compositions: {tutor: math+swahili, blend: {task: math, language: swahili, recipe: {method: soup}}}",
    "compositions: {tutor: {task: math, chat: base, residency: delta}}",
    "residency: delta\nchat: task\npreload: [math+swahili]\npinned: [math]",
    "fallback: math",
    "fallback: {to: error, below: 0.8}",
)
WRONG = (
    "bases: base",
    "recipe: 3",
    "recipe: {preset: papers}",
    "recipe: {bottom: -1}",
    "recipe: {bottom: two}",
    "recipe: {transition: 1, before_top: 2}",
    "recipe: {weight: 1.5}",
    "recipe: {method: slerp}",
    "recipe: {method: soup, bottom: 3}",
    "recipe: {method: soup, weights: {math: -0.5}}",
    "recipe: {method: table}",
    "recipe: {method: table, layers: {0: {attention: math}}}",
    "compositions: {tutor: {}}",
    "compositions: {tutor: {task: null}}",
    "compositions: {auto: math}",
    "compositions: {The Tutor: math}",
    "residency: packed",
    "chat: [task]",
    "preload: math",
    "fallback: {below: 2}",
    "experts: {}",
    "experts: {math: {path: math}}",
    "experts: {math: {kind: task}}",
    "experts: {math: {kind: task, path: math, hub: a/b, revision: main}}",
    "experts: {math: {kind: task, hub: a/b}}",
    "experts: {math: {kind: skill, path: math}}",
    "experts: {base: {kind: task, path: math}}",
    "experts: {math: {kind: task, path: math, aliases: [Maths]}}",
    "base: {revision: main}",
)


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    Draft7Validator.check_schema(schema())
    return Draft7Validator(schema())


def test_the_committed_file_is_what_the_models_say():
    told = "run: python -m layerloom.composer.family.schema composer/family/family.schema.json"
    assert FILE.read_text() == written(), told


def test_the_command_prints_it():
    command = [sys.executable, "-m", "layerloom.composer.family.schema"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == written()


def test_every_key_is_described():
    for model in FILED:
        assert {*model.model_fields} - {"method"} <= described(model).keys(), model


def test_families_are_valid(validator: Draft7Validator, tmp_path: Path):
    for path in (ROOT / "demo/family.yaml", *ROOT.glob("docs/examples/*.yaml"), make_family(tmp_path)):
        assert not problems(validator, path), path


@pytest.mark.parametrize("lines", RIGHT)
def test_what_is_read_is_valid(validator: Draft7Validator, tmp_path: Path, lines: str):
    path = family_of(tmp_path, lines)
    read_entries(path)
    assert not problems(validator, path)


@pytest.mark.parametrize("lines", WRONG)
def test_what_is_refused_is_not(validator: Draft7Validator, tmp_path: Path, lines: str):
    path = family_of(tmp_path, lines)
    found: list[str] = []
    try:
        read_names(path, read_entries(path), found)
    except FamilyError as error:
        found += error.problems
    assert found
    assert problems(validator, path)


@pytest.mark.parametrize("key", ["0-", "a", "-1", "00000", "1-2-3"])
def test_keys_that_are_no_layers(validator: Draft7Validator, tmp_path: Path, key: str):
    assert problems(validator, family_of(tmp_path, f"recipe: {{method: table, layers: {{'{key}': math}}}}"))


def family_of(folder: Path, lines: str) -> Path:
    """A family.yaml that has these lines in place of its own of the same keys."""
    given = yaml.load(lines, Loader) or {}
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump({**yaml.load(START, Loader), **given}))
    return path


def problems(validator: Draft7Validator, path: Path) -> list[Any]:
    """What is wrong with a file, whose keys are text for a schema."""
    return list(validator.iter_errors(json.loads(json.dumps(yaml.load(path.read_text(), Loader)))))
