"""Names the pattern of each log line, so that lines that differ in their values alone are one.

`user 4711 from 10.0.0.7 paid 12.50` and `user 42 from 10.0.0.9 paid 3` are both `user <*> from <*> paid <*>`.
Reads `logs_raw`, writes `logs_norm`; two attributes are added: `log.pattern`, and `log.pattern_id`, 16 hex digits.
The view `log_patterns` of ClickHouse counts lines by service, pattern and minute:

    SELECT minute, sum(lines) FROM log_patterns WHERE service = 'checkout' AND pattern_id = '…' GROUP BY minute

A pattern is a function of the line alone: words with a digit in them, quoted texts and what comes after `=` or in a
JSON value become `<*>`, several of them in a row become one. So it is the same after a restart, on every worker and in
every region, which patterns that are learned from the order of lines (Drain) are not; in exchange a value that is a
plain word, such as a user's name, stays in the pattern.

    [agents.log_patterns]
    max_words = 60              # of a line; the rest is cut (default)
"""

import functools
import hashlib
import re
from typing import Annotated

from pydantic import BaseModel, Field

from pipeline.agents import Context, LogRecord, agent

VALUE = "<*>"
LOOKED_AT = 4096  # characters of a line
QUOTED = re.compile(r"""(?<!\w)(?:"[^"\n]*"|'[^'\n]*'(?!\w))""")
ASSIGNED = re.compile(r"(?<=[\w\])\"])([=:])(?=[^\s=:/])[^\s,;&)\]}]+")
WORD = re.compile(r"[^\s,;/?&()\[\]{}<>|=]+")
HEXADECIMAL = re.compile(r"[0-9a-fA-F]{8,}")
VALUES = re.compile(r"<\*>(?:[\s,;/.:|-]*<\*>)+")


class Settings(BaseModel):
    max_words: Annotated[int, Field(gt=0)] = 60


@agent(reads="logs_raw", writes="logs_norm", version=1, settings=Settings)
def log_patterns(record: LogRecord, context: Context[Settings, None]) -> LogRecord:
    if not record.body:
        return record
    pattern, pattern_id = named(record.body, context.settings.max_words)
    return record.replace(attributes={**record.attributes, "log.pattern": pattern, "log.pattern_id": pattern_id})


@functools.lru_cache(20_000)
def named(line: str, max_words: int) -> tuple[str, str]:
    """The line's pattern and that one's id."""
    found = pattern_of(line, max_words)
    return found, hashlib.blake2b(found.encode(), digest_size=8).hexdigest()


def pattern_of(line: str, max_words: int) -> str:
    """The line with <*> for its values."""
    text = QUOTED.sub(_quoted, line[:LOOKED_AT])
    text = ASSIGNED.sub(rf"\1{VALUE}", text)
    text = WORD.sub(_word, text)
    words = VALUES.sub(VALUE, text).split()
    return " ".join(words[:max_words])


def _quoted(match: re.Match[str]) -> str:
    """A key of JSON stays."""
    after = match.string[match.end() : match.end() + 1]
    return match[0] if after == ":" else VALUE


def _word(match: re.Match[str]) -> str:
    word = match[0]
    return VALUE if any(map(str.isdigit, word)) or HEXADECIMAL.fullmatch(word) else word
