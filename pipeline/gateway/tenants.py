"""Who sends, and how much of it: tenants by API key or client certificate, from a file that may change.

[tenants.shop]
keys = ["sha256:…"]                   # of `pipeline tenants key`; only hashes are kept
certificates = ["shop.example.com"]   # common or alternative names of client certificates
signals = ["logs", "traces"]          # default all: also metrics, and events, rows of registered tables
records_per_s = 50000                 # default no limit
bytes_per_s = 25000000                # as decompressed
burst_s = 10                          # that much of each may come at once
"""

import hashlib
import os
import pathlib
import secrets
import time
import tomllib
from collections.abc import Callable
from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import Misconfigured, Rejected, Unavailable
from pipeline.record.schema import Signal
from pipeline.settings import Alias, Part

HASH = "sha256:"
Rate = Annotated[float, Field(gt=0)]


class Unauthenticated(Rejected):
    """Nobody that we know."""


class Forbidden(Rejected):
    """Known, and not allowed to do this."""


class Throttled(Unavailable):
    """Over a tenant's rate; `wait_s` from now there is room again."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Declared(Part):
    """A tenant as the file has it."""

    keys: tuple[Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")], ...] = ()
    certificates: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    signals: frozenset[Signal] = frozenset(get_args(Signal))
    records_per_s: Rate | None = None
    bytes_per_s: Rate | None = None
    burst_s: Annotated[float, Field(ge=1)] = 10.0


class _File(Part):
    tenants: dict[Alias, Declared]


def new_key() -> tuple[str, str]:
    """A random API key, and what the file keeps of it."""
    key = secrets.token_urlsafe(32)
    return key, hashed(key)


def hashed(key: str) -> str:
    """Keys are random, 256 bits: a plain hash cannot be guessed back, and costs a microsecond a request. What is shown
    as one may hold any bytes."""
    return HASH + hashlib.sha256(key.encode(errors="replace")).hexdigest()


class _Bucket:
    """A rate with a burst. Who finds something left may take more than that: the debt is waited for by the next."""

    def __init__(self, per_s: float, burst_s: float, now_s: float) -> None:
        self._per_s, self._burst = per_s, per_s * burst_s
        self._left, self._at_s = self._burst, now_s

    def wait_s(self, now_s: float) -> float:
        """0 while something is left, else when there will be."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return 0.0 if self._left > 0 else (1 - self._left) / self._per_s

    def take(self, amount: int) -> None:
        self._left -= amount


class Tenant:
    """One sender: what it may send, and what of its rates is left in this process."""

    def __init__(self, name: str, declared: Declared, workers: int, clock: Callable[[], float]) -> None:
        self.name = name
        self.declared = declared
        self._clock = clock
        rates = {"records": declared.records_per_s, "bytes": declared.bytes_per_s}
        self._buckets = {
            unit: _Bucket(rate / workers, declared.burst_s, clock()) for unit, rate in rates.items() if rate is not None
        }

    def check(self, signal: Signal) -> None:
        """Raise Forbidden where this signal is not the tenant's to send, Throttled where it is over a rate."""
        if signal not in self.declared.signals:
            raise Forbidden(f"The tenant {self.name} may not send {signal}: its `signals` do not name them.")
        now_s = self._clock()
        for unit, bucket in self._buckets.items():
            wait_s = bucket.wait_s(now_s)
            if wait_s:
                raise Throttled(f"The tenant {self.name} is over its {unit}_per_s: send less, or later.", wait_s)

    def take(self, *, records: int = 0, size: int = 0) -> None:
        """Count what was sent against the rates; `size` in bytes."""
        for unit, amount in (("records", records), ("bytes", size)):
            if unit in self._buckets:
                self._buckets[unit].take(amount)


class Tenants:
    """All senders. With a file everybody shows a key or a certificate; without one everybody is `default`."""

    def __init__(
        self, file: pathlib.Path | None, *, default: str, workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._workers = workers
        self._clock = clock
        self._fixed = Tenant(default, Declared(), workers, clock)
        self._by_name: dict[str, Tenant] = {}
        self._by_hash: dict[str, Tenant] = {}
        self._by_certificate: dict[str, Tenant] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again; raise Misconfigured with all its problems, and keep what was known before."""
        if self._file is None:
            return
        declared = load(self._file)
        known = self._by_name
        self._by_name = {
            name: known[name]  # an unchanged tenant keeps what is left of its rates
            if name in known and known[name].declared == new
            else Tenant(name, new, self._workers, self._clock)
            for name, new in declared.items()
        }
        self._by_hash = {key: tenant for tenant in self._by_name.values() for key in tenant.declared.keys}
        self._by_certificate = {
            name: tenant for tenant in self._by_name.values() for name in tenant.declared.certificates
        }

    def identify(self, authorization: str, certificate: tuple[str, ...]) -> Tenant:
        """Who shows this `Authorization` header or the names of this verified certificate; raise Unauthenticated."""
        if self._file is None:
            return self._fixed
        scheme, _, key = authorization.partition(" ")
        if key:
            tenant = self._by_hash.get(hashed(key.strip())) if scheme.lower() == "bearer" else None
            if tenant is None:
                raise Unauthenticated("The API key is not known here.")
            return tenant
        for name in certificate:
            if name in self._by_certificate:
                return self._by_certificate[name]
        raise Unauthenticated(
            "Say who you are: send the header `Authorization: Bearer <API key>`, or a client certificate of a tenant."
        )


def load(file: pathlib.Path) -> dict[str, Declared]:
    """The tenants that `file` declares; raise Misconfigured with every problem at once."""
    try:
        found = TypeAdapter(_File).validate_python(tomllib.loads(file.read_text()))
    except OSError as error:
        raise Misconfigured(f"gateway.tenants_file {file} cannot be read: {os.strerror(error.errno or 0)}.") from None
    except ValidationError as error:
        # Without the input: a key that somebody did not hash must not get into a log.
        raise Misconfigured(
            [f"{file}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{file}: {error}") from None
    problems = []
    for what in ("keys", "certificates"):
        shown = [(one, name) for name, declared in found.tenants.items() for one in getattr(declared, what)]
        owner = dict(reversed(shown))
        problems += [
            f"{file}: tenants.{name}.{what}: {one[:20]} belongs to {owner[one]} already."
            for one, name in shown
            if owner[one] != name
        ]
    if problems:
        raise Misconfigured(problems)
    return found.tenants
