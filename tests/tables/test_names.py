"""Names that registered tables may have."""

import re

from pipeline.settings import ROOT
from pipeline.tables import names

MADE = re.compile(r"^CREATE (?:MATERIALIZED VIEW|TABLE|VIEW|TYPE)(?: IF NOT EXISTS)? ([a-z0-9_]+)", re.MULTILINE)


def test_no_registered_table_is_called_like_one_of_the_migrations() -> None:
    """Every table, view and type that the migrations make is a name that is refused."""
    made = {name for file in (ROOT / "migrations").rglob("*.sql") for name in MADE.findall(file.read_text())}
    assert len(made) > 30
    assert made <= names.BUILT_IN
