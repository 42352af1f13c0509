"""Both implementations of the encoder, one after the other."""

from collections.abc import Iterator

import pytest

from pipeline import native


@pytest.fixture(scope="module", params=["python", "native"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """A module that uses it runs once with each; without the extension the second skips (its own tests fail in CI)."""
    native.choose("auto")
    if request.param == "native" and native.chosen() is None:
        pytest.skip("The extension was not built: install Rust (cargo), then the project again.")
    native.choose(request.param)
    yield request.param
    native.choose("auto")
