"""What the tests of the core share."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def plain_python() -> Iterator[None]:
    """Switch the shape checks of the tests off: wrong shapes then meet our own messages, as at a user's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
