from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from launching import fresh_accelerate


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    with fresh_accelerate():
        yield Accelerator(cpu=True)
