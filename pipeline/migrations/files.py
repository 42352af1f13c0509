"""Migration files: plain SQL, `migrations/<store>/NNNN_<what>.sql`, cut into statements.

A comment line directly above a statement may direct it:

    -- when: <capability>       only where the store has the capability
    -- unless: <capability>     only where it has not
    -- transaction: none        cannot run inside a transaction (PostgreSQL)

What runs outside a transaction, as all of ClickHouse does, may run again after a crash: CREATE, DROP, and ALTER TABLE
where it adds or drops, must say IF NOT EXISTS, IF EXISTS or OR REPLACE there.

Any other comment line that begins with a word and a colon in lower case is a mistyped directive, and an error.
"""

import hashlib
import pathlib
import re
from dataclasses import dataclass

from sqlglot.dialects.clickhouse import ClickHouse
from sqlglot.dialects.dialect import Dialect
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import TokenError
from sqlglot.tokenizer_core import TokenType

from pipeline.errors import Misconfigured
from pipeline.settings import ROOT

DIRECTORY = ROOT / "migrations"
DIALECTS: dict[str, type[Dialect]] = {"postgres": Postgres, "clickhouse": ClickHouse}
CAPABILITIES = frozenset({"timescaledb"})
FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
UNREPEATABLE = re.compile(
    r"\s*(CREATE|DROP)\b(?!.*\b(IF\s+(NOT\s+)?EXISTS|OR\s+REPLACE)\b)"
    r"|\s*ALTER\b.*\b(ADD|DROP|RENAME)\s+(COLUMN|INDEX|PROJECTION|CONSTRAINT|STATISTICS)\b(?!\s+IF\b)",
    re.IGNORECASE | re.DOTALL,
)
DIRECTIVE = re.compile(r"--\s*([a-z]+):\s*(.*?)\s*")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as written, its comments included, without the semicolon."""

    text: str
    when: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()
    transactional: bool = True

    def runs(self, capabilities: frozenset[str]) -> bool:
        return self.when <= capabilities and not self.unless & capabilities

    @property
    def title(self) -> str:
        """Its first line that is not a comment."""
        return next(line for line in map(str.strip, self.text.splitlines()) if line and not line.startswith("--"))

    @property
    def marks(self) -> list[str]:
        """Where and how it runs, if not everywhere and in a transaction."""
        marks = [f"only with {one}" for one in sorted(self.when)] + [
            f"only without {one}" for one in sorted(self.unless)
        ]
        return marks if self.transactional else [*marks, "outside a transaction"]


@dataclass(frozen=True, slots=True)
class Migration:
    """One file; `name` is the file's, for people."""

    store: str
    version: int
    name: str
    statements: tuple[Statement, ...]

    @property
    def path(self) -> str:
        return f"migrations/{self.store}/{self.name}"

    def checksum(self, statements: int) -> str:
        """SHA-256, in hex, of the first so many statements with their comments."""
        return hashlib.sha256("\0".join(s.text for s in self.statements[:statements]).encode()).hexdigest()


def load(store: str, directory: pathlib.Path = DIRECTORY) -> list[Migration]:
    """The migrations of a store, by version. Raise Misconfigured with every problem of every file."""
    migrations: dict[int, Migration] = {}
    problems = []
    for path in sorted((directory / store).glob("*")):
        where = f"migrations/{store}/{path.name}"
        match = FILE_NAME.fullmatch(path.name)
        if not match:
            problems.append(f"{where}: a migration is called NNNN_<what>.sql, in lower case.")
            continue
        version = int(match[1])
        if version in migrations:
            problems.append(f"{where}: {migrations[version].name} has the same number; give it the next free one.")
        try:
            statements = tuple(split(path.read_text(encoding="utf-8"), store))
        except Misconfigured as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
            continue
        if not statements:
            problems.append(f"{where}: holds no statement.")
        migrations[version] = Migration(store, version, path.name, statements)
    if not migrations and not problems:
        problems.append(f"migrations/{store}/ holds no migration: restore its *.sql files.")
    if problems:
        raise Misconfigured(problems)
    return [migrations[version] for version in sorted(migrations)]


def split(text: str, store: str) -> list[Statement]:
    """Cut SQL at its semicolons, as the store's own lexer would; strings and $$ bodies stay whole.

    Raise Misconfigured with every wrong directive, or where the text cannot be read.
    """
    try:
        tokens = DIALECTS[store]().tokenize(text)
    except TokenError as error:
        raise Misconfigured(f"cannot be cut into statements: {' '.join(str(error).split())}.") from None
    statements: list[Statement] = []
    problems: list[str] = []
    start, holds_tokens = 0, False
    for token in tokens:
        if token.token_type is not TokenType.SEMICOLON:
            holds_tokens = True
            continue
        if holds_tokens:
            statements.append(_statement(text[start : token.start].strip(), store, problems))
        start, holds_tokens = token.end + 1, False
    if holds_tokens:
        statements.append(_statement(text[start:].strip(), store, problems))
    if problems:
        raise Misconfigured(problems)
    return statements


def _statement(text: str, store: str, problems: list[str]) -> Statement:
    found: dict[str, set[str]] = {"when": set(), "unless": set(), "transaction": set()}
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("--"):
            break
        directive = DIRECTIVE.fullmatch(line)
        if not directive:
            continue
        word, value = directive.groups()
        allowed = frozenset({"none"}) if word == "transaction" else CAPABILITIES
        if word not in found:
            problems.append(f"`{line}`: unknown directive; known are {', '.join(found)}.")
        elif value not in allowed:
            problems.append(f"`{line}`: {word} takes {' or '.join(sorted(allowed))}.")
        else:
            found[word].add(value)
    transactional = not found["transaction"]
    statement = Statement(text, frozenset(found["when"]), frozenset(found["unless"]), transactional)
    bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    if (store == "clickhouse" or not transactional) and UNREPEATABLE.match(bare):
        problems.append(
            f"`{statement.title}`: runs outside a transaction and may run again after a crash; say IF NOT EXISTS, "
            "IF EXISTS or OR REPLACE."
        )
    return statement
