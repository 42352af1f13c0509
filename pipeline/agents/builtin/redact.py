"""Takes e-mail addresses, card numbers, tokens and IP addresses out of every text of a record.

`redact_logs`, `redact_metrics` and `redact_traces` read `<signal>_raw` and write `<signal>_norm`. Every text is
looked at: body, names, keys and values of attributes, of the resource, the scope, span events, links and exemplars.

    [agents.redact_logs]
    find = ["email", "card", "token", "ip"]     # default: all
    keys = ["password", "authorization"]        # the whole value of an attribute whose key contains one, in any case
    keep = ["client.address"]                   # attributes of these keys stay as they are
    key_file = "/etc/pipeline/redact.key"       # default none

    [agents.redact_logs.patterns]               # your own, in the syntax of RE2
    order = "ORD-[0-9]{8}"

What is found becomes `[email]`, or with a key `[email:6f1d0c2b9a3e4f58]`: a keyed hash, so that equal values stay equal
and different ones apart. Give metrics a key where labels hold such values, or their series become one, and of points of
one time the last is kept. A card number has 13 to 19 digits, perhaps grouped by blanks or hyphens, and a right check
digit (Luhn); a number longer than that is none. What looks like an address, such as a version of four numbers, is taken
for one. Matching is by RE2: time grows with the text and no faster, whatever the pattern.

The topic that it reads, and its dead letters, keep what was sent: give few people access to those, and let the writers
read what it writes.
"""

import hashlib
import ipaddress
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import re2
from pydantic import BaseModel, field_validator

from pipeline.agents import Context, LogRecord, MetricPoint, Record, Span, agent
from pipeline.errors import Misconfigured
from pipeline.record import schema

Kind = Literal["email", "card", "token", "ip"]
PLATFORMS = frozenset({"event_id", "region", "tenant", "type", "temporality"})  # set by the platform, or enums
CARD_DIGITS = range(13, 20)
LUHN_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # the sum of the digits of twice the digit
SHORT = 512  # texts up to that length are remembered
REMEMBERED = 20_000

EMAIL = r"[\pL\pN._%+'\-]+(?:@|%40)(?:[\pL\pN\-]+\.)+[\pL\pN\-]*\pL"
DIGITS = r"[0-9](?:[ \-]?[0-9]){12,}"
IPV4 = r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
COLONS = r"[0-9A-Za-z._]*:[0-9A-Za-z._]*:[0-9A-Za-z.:_]*"  # what may hold an IPv6 address
TOKENS = "|".join(
    (
        r"eyJ[\w\-]{5,}\.[\w\-]+(?:\.[\w\-]*)*",  # JWT
        r"(?:AKIA|ASIA)[A-Z0-9]{16}",
        r"gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w\-]{20,}",
        r"xox[abeoprs]-[\w\-]{10,}|AIza[\w\-]{30,}",
        r"[sprk]k[_\-](?:live|test|proj|ant)[\w\-]{10,}",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
    )
)
# Those that are told by what is before them, which stays.
AFTER = "|".join(
    (
        r"((?i:bearer|basic)\s+)[\w.~+/=\-]{16,}",
        r"(://[^\s/:@]*:)[^\s/@]+@",
        r"""((?i:password|passwd|pwd|secret|api[_\-]?key|access[_\-]?token|refresh[_\-]?token)\\?["']?\s*[=:]\s*\\?["']?)"""
        r"""[^\s"'&,;}\\]+""",
    )
)
# What each kind cannot do without, also in the midst of other bytes: most records have none of it.
SIGNS: dict[str, str] = {
    "email": r"@|%40",
    "card": r"[0-9](?:[ \-]?[0-9]){12}",
    "ip": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]*:[0-9A-Fa-f]*:",
    "token": r"eyJ|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|AIza|[sprk]k[_\-]|PRIVATE KEY|://|"
    r"(?i:bearer|basic|passw|pwd|secret|api[_\-]?key|access[_\-]?token|refresh[_\-]?token)",
}


class Settings(BaseModel):
    find: tuple[Kind, ...] = ("email", "card", "token", "ip")
    keys: tuple[str, ...] = (
        "password", "passwd", "secret", "authorization", "cookie", "api_key", "api-key", "apikey", "access_token",
        "refresh_token", "private_key",
    )  # fmt: skip
    keep: frozenset[str] = frozenset()
    patterns: dict[str, str] = {}
    key_file: pathlib.Path | None = None

    @field_validator("patterns")
    @classmethod
    def _linear(cls, patterns: dict[str, str]) -> dict[str, str]:
        wrong = []
        for name, pattern in patterns.items():
            try:
                found = _compiled(pattern)
            except re2.error as error:
                said = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
                wrong.append(f"{name} is no pattern of RE2, which knows what takes linear time: {said}")
            else:
                if found.search(""):
                    wrong.append(f"{name} matches the empty text")
        if wrong:
            raise ValueError("; ".join(wrong))
        return patterns


class Redactor:
    """A function of a record, by the settings alone."""

    def __init__(self, settings: Settings) -> None:
        self._keep = settings.keep
        self._secret_keys = tuple(key.lower() for key in settings.keys)
        self._hash_key = _key(settings.key_file)
        finders: dict[str, list[tuple[Any, Callable[[Any], str]]]] = {
            "token": [
                (_compiled(TOKENS), self._as("token")),
                (_compiled(AFTER), self._after),
            ],
            "email": [(_compiled(EMAIL), self._as("email"))],
            "card": [(_compiled(DIGITS), self._card)],
            "ip": [(_compiled(COLONS), self._ipv6), (_compiled(IPV4), self._as("ip"))],
        }
        self._steps = [step for kind, steps in finders.items() if kind in settings.find for step in steps]
        self._steps[:0] = [(_compiled(pattern), self._as(name)) for name, pattern in settings.patterns.items()]
        signs = [SIGNS[kind] for kind in settings.find] + [f"(?i:{re2.escape(key)})" for key in self._secret_keys]
        self._sign = None if settings.patterns or not signs else _compiled("|".join(signs).encode())
        self._clean_shared: dict[bytes, bool] = {}
        self._known: dict[str, str] = {}
        self._fields = {signal: _text_fields(signal) for signal in schema.SIGNALS}

    def __call__(self, record: Record) -> Record:
        if self._surely_clean(record):
            return record
        changed = {}
        for name, value in record.as_dict().items():
            if name not in PLATFORMS:
                cleaned = self._value(value)
                if cleaned != value:
                    changed[name] = cleaned
        return record.replace(**changed) if changed else record

    def text(self, text: str) -> str:
        """The text without what is looked for."""
        known = self._known.get(text)
        if known is not None:
            return known
        cleaned = text
        for pattern, instead in self._steps:
            cleaned = pattern.sub(instead, cleaned)
        if len(text) <= SHORT:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[text] = cleaned
        return cleaned

    def _surely_clean(self, record: Record) -> bool:
        """Without looking at any field: by its encoded bytes."""
        if self._sign is None:
            return False
        shared_fields, own_fields = self._fields[record.signal]
        piece = record.piece
        shared = b"".join([piece(name) for name in shared_fields])
        clean = self._clean_shared.get(shared)
        if clean is None:
            if len(self._clean_shared) >= REMEMBERED:
                self._clean_shared.clear()
            clean = self._clean_shared[shared] = not self._sign.search(shared)
        return clean and not self._sign.search(b"\0".join([piece(name) for name in own_fields]))

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return self._attributes(value)
        if isinstance(value, tuple):
            cleaned = [self._value(each) for each in value]
            return type(value)(*cleaned) if hasattr(value, "_fields") else tuple(cleaned)
        return value

    def _attributes(self, attributes: Mapping[str, str]) -> dict[str, str]:
        """Keys that become equal are counted, or one of them would be lost."""
        cleaned: dict[str, str] = {}
        for key, text in attributes.items():
            if key in self._keep:
                cleaned[key] = text
                continue
            name = base = self.text(key)
            number = 1
            while name in cleaned or (name != key and name in attributes):
                number += 1
                name = f"{base}#{number}"
            lowered = key.lower()
            is_secret = any(each in lowered for each in self._secret_keys)
            cleaned[name] = self._instead("secret", text) if is_secret and text else self.text(text)
        return cleaned

    def _instead(self, kind: str, text: str) -> str:
        if re.fullmatch(rf"\[{re.escape(kind)}(:[0-9a-f]{{16}})?\]", text):
            return text  # of an agent before this one
        if not self._hash_key:
            return f"[{kind}]"
        return f"[{kind}:{hashlib.blake2b(text.encode(), key=self._hash_key, digest_size=8).hexdigest()}]"

    def _as(self, kind: str) -> Callable[[Any], str]:
        return lambda match: self._instead(kind, match[0])

    def _after(self, match: Any) -> str:
        before: str = next(group for group in match.groups() if group is not None)
        rest: str = match[0][len(before) :]
        end = "@" if before.startswith("://") else ""
        return before + self._instead("secret", rest.removesuffix(end) if end else rest) + end

    def _card(self, match: Any) -> str:
        """Every run of whole groups in it that is a card number becomes one mark, the longest first."""
        text: str = match[0]
        groups = _groups(text)
        out, at, n = "", 0, 0
        while n < len(groups):
            end = _card_end(text, groups, n)
            if end is None:
                n += 1
                continue
            start, stop = groups[n][0], groups[end][1]
            out += text[at:start] + self._instead("card", text[start:stop])
            at, n = stop, end + 1
        return out + text[at:]

    def _ipv6(self, match: Any) -> str:
        """What is around the address, such as a name before a colon, stays."""
        text: str = match[0]
        parts = text.split(":")
        first, last = 0, len(parts)
        while first < last and not _hexadecimal(parts[first]):
            first += 1
        while last > first and not _hexadecimal(parts[last - 1].rstrip(".")) and not _is_ipv4(parts[last - 1]):
            last -= 1
        core = ":".join(parts[first:last]).rstrip(".")
        for candidate in (core, core.removesuffix(":"), core.removeprefix(":")):
            if any(map(str.isdigit, candidate)) and _is_ipv6(candidate):
                return text.replace(candidate, self._instead("ip", candidate), 1)
        return text


@agent(reads="logs_raw", writes="logs_norm", version=1, settings=Settings)
def redact_logs(record: LogRecord, context: Context[Settings, Redactor]) -> Record:
    return context.state(record)


@agent(reads="metrics_raw", writes="metrics_norm", version=1, settings=Settings)
def redact_metrics(record: MetricPoint, context: Context[Settings, Redactor]) -> Record:
    return context.state(record)


@agent(reads="traces_raw", writes="traces_norm", version=1, settings=Settings)
def redact_traces(record: Span, context: Context[Settings, Redactor]) -> Record:
    return context.state(record)


redact_logs.start(Redactor)
redact_metrics.start(Redactor)
redact_traces.start(Redactor)


def _compiled(pattern: str | bytes) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.encoding = re2.Options.Encoding.LATIN1 if isinstance(pattern, bytes) else re2.Options.Encoding.UTF8
    return re2.compile(pattern, options)


def _key(file: pathlib.Path | None) -> bytes:
    """As the file holds it, without blanks around."""
    if file is None:
        return b""
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise Misconfigured(f"key_file {file} is not readable: {error.strerror}.") from None
    if not 16 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise Misconfigured(f"key_file {file} holds {len(key)} bytes; a key has 16 to 64.")
    return key


def _text_fields(signal: schema.Signal) -> tuple[list[str], list[str]]:
    """Fields that hold text: those that the records of a request share, and a record's own."""
    names = [
        field["name"]
        for field in schema.of(signal).avro["fields"]
        if field["name"] not in PLATFORMS
        and (
            field["type"] == "string" or (isinstance(field["type"], dict) and field["type"]["type"] in ("map", "array"))
        )
    ]
    cut = names.index("scope_schema_url") + 1
    return names[:cut], names[cut:]


def _groups(text: str) -> list[tuple[int, int]]:
    """Where each group of digits begins and ends."""
    found: list[tuple[int, int]] = []
    start = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or not text[place].isdigit():
            if text[start].isdigit():
                found.append((start, place))
            start = place + 1
    return found


def _card_end(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The last group of the longest card number that begins with group `first`.

    Check digit by Luhn: ISO/IEC 7812-1, annex B; counted from the right every second digit is doubled, so there is a
    sum for either. Zeros alone are no number.
    """
    sums, count, found = [0, 0], 0, None
    for number in range(first, len(groups)):
        start, stop = groups[number]
        if count + stop - start >= CARD_DIGITS.stop:
            break
        for digit in map(int, text[start:stop]):
            sums[count % 2] += digit
            sums[1 - count % 2] += LUHN_DOUBLED[digit]
            count += 1
        total = sums[1 - count % 2]
        if count in CARD_DIGITS and total and total % 10 == 0:
            found = number
    return found


def _hexadecimal(text: str) -> bool:
    return len(text) <= 4 and all(letter in "0123456789abcdefABCDEF" for letter in text)


def _is_ipv4(text: str) -> bool:
    return _compiled(f"^{IPV4}$").search(text) is not None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
