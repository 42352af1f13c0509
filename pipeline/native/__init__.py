"""The hot path in Rust, which stands in for the Python beside it where it could be built.

`pip install` builds it where there is cargo. Which of the two runs is chosen once, at start; both give the same bytes,
and only those whose work it does ask for it.
"""

from types import ModuleType
from typing import Literal

from pipeline.errors import Misconfigured

Implementation = Literal["auto", "native", "python"]

_built: ModuleType | None
try:
    from pipeline.native import _native as _built
except ImportError:
    _built = None
_chosen = _built


def choose(wanted: Implementation) -> None:
    """Choose for this process; raise Misconfigured where `native` is wanted and was not built."""
    global _chosen  # noqa: PLW0603 - the one choice of the process
    if wanted == "native" and _built is None:
        raise Misconfigured(
            "implementation is native, and it was not built: install Rust (cargo) and then the project again, "
            "or set implementation to auto."
        )
    _chosen = None if wanted == "python" else _built


def chosen() -> ModuleType | None:
    """The extension, or None where Python does the work."""
    return _chosen


def name() -> str:
    """`native`, or `python` and what that costs."""
    if _chosen is not None:
        return "native"
    return "python (encoding is about 25 times slower than native" + ("" if _built else ", which was not built") + ")"
