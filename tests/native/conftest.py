"""The extension is needed here."""

from collections.abc import Iterator

import pytest

from pipeline import native
from tests.native.both import demand_built


@pytest.fixture(scope="package", autouse=True)
def needed() -> None:
    demand_built()


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    yield
    native.choose("auto")
