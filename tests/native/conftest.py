"""The extension is needed here."""

import os
from collections.abc import Iterator

import pytest

from pipeline import native
from tests.native.both import built


@pytest.fixture(scope="package", autouse=True)
def needed() -> None:
    """In CI the extension is there; elsewhere these tests skip without it."""
    if not built():
        if os.environ.get("CI"):
            pytest.fail("The extension was not built: install Rust (cargo), then the project again.", pytrace=False)
        pytest.skip("The extension was not built: install Rust (cargo), then the project again.")


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    yield
    native.choose("auto")
