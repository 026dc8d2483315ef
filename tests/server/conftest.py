import pytest
from engines import ENVIRONMENT


@pytest.fixture(scope="module")
def engine_environment():
    """For engines in the test's own process; servers have an environment of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield
