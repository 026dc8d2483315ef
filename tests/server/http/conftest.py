"""A browser for the tests of the studio."""

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Not longer: where Playwright is, an event loop runs, and the tests of other modules start theirs.
    with chromium() as found:
        yield found
