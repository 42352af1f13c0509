"""The report of a comparison: one HTML file that needs nothing else."""

import json
import pathlib
from typing import Any

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
PLACE = "/*DOCUMENT*/null"


def page(document: dict[str, Any]) -> str:
    """`document` as the comparison gives it, inside a page that draws it."""
    text = json.dumps(document, ensure_ascii=False).replace("<", "\\u003c")  # nothing in it can end the script
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, text, 1)
