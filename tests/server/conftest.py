"""What server tests share.

A server takes half a minute of both cores to start, so a test that only asks takes one of these, which the whole run
starts once: `demo` (the demo family; tool calls on, answers stored, behind an API key), `pico` (a random llama of 8
layers; takes recipes, has a context of 8192 tokens and a token for every byte) and `two` (the same with two API server
processes). Tests of one server follow each other on one worker: a test must leave its server healthy, with no request
running and its family as it was. A test that needs other options, or that harms its server, starts its own with
`serving(...)`, in a module-scoped fixture where several tests of the file can share it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engines import ENVIRONMENT
from pico import make_family
from serving import KEY, Server, serving

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture(scope="module")
def engine_environment():
    """For engines in the test's own process; servers have an environment of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, Any]]]:
    """The demo's server, and the models it listed before anybody asked for one."""
    log = tmp_path_factory.mktemp("demo") / "log"
    options = "--api-key", KEY, "--enable-auto-tool-choice", "--tool-call-parser", "hermes"
    with serving(DEMO, log, *options, VLLM_ENABLE_RESPONSES_API_STORE="1") as server:
        yield server, {model.id: model for model in server.client.models.list()}


@pytest.fixture(scope="session")
def demo(started: tuple[Server, dict[str, Any]]) -> Server:
    return started[0]


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Takes recipes, has a long context, and a token for every byte, so that it can write JSON."""
    compact = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
    options = "--structured-outputs-config", compact, "--enable-auto-tool-choice", "--tool-call-parser", "hermes"
    with small(tmp_path_factory.mktemp("pico"), *options) as server:
        yield server


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two API server processes before one engine."""
    with small(tmp_path_factory.mktemp("two"), "--api-server-count", "2") as server:
        yield server


@contextmanager
def small(root: Path, *options: str) -> Iterator[Server]:
    family = make_family(root, max_position_embeddings=8192)
    # Room for an expert more.
    options = ("--allow-recipes", "--max-model-len", "8192", "--bank-memory", "64M", *options)
    with serving(family, root / "log", *options) as server:
        yield server
