from collections.abc import Iterator

import pytest

from tests.recipes.small_pipeline import forget_accelerate


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate fixes precision and gradient state once per process; each test starts from nothing."""
    yield
    forget_accelerate()
