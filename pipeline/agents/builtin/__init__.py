"""Agents that come with the pipeline, each a file of its own whose first text is its page: `pipeline agents show`.

`pipeline agents run redact` runs one between its own topics. Between others, and several in a row, from a file of
yours: `mask = redact_logs.between("mask", reads="logs_raw", writes="logs_clean")`.
"""

import ast
import pathlib

FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """Every built-in's name."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def path(name: str) -> pathlib.Path:
    """Its file, which need not be there."""
    return FOLDER / f"{name}.py"


def page(name: str) -> str:
    """The text at the top of its file."""
    return ast.get_docstring(ast.parse(path(name).read_text())) or ""
