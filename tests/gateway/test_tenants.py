"""Who sends is known by key or certificate, and each sends no more than its share."""

import pathlib

import pytest

from pipeline.errors import Misconfigured
from pipeline.gateway.tenants import Forbidden, Tenants, Throttled, Unauthenticated, hashed, new_key

SECRET = "a-key-that-nobody-hashed"


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tenants(path: pathlib.Path, text: str, clock: Clock, workers: int = 1) -> Tenants:
    file = path / "tenants.toml"
    file.write_text(text)
    return Tenants(file, default="default", workers=workers, clock=clock)


def bearer(key: str) -> str:
    return f"Bearer {key}"


def test_a_key_or_a_certificate_names_its_tenant(tmp_path: pathlib.Path, clock: Clock) -> None:
    """The key itself is nowhere in the file; the scheme's case does not matter."""
    key, kept = new_key()
    assert key not in kept
    known = tenants(
        tmp_path,
        f'[tenants.shop]\nkeys = ["{kept}", "{hashed("old")}"]\n[tenants.bank]\ncertificates = ["bank.example"]\n',
        clock,
    )
    assert known.identify(bearer(key), ()).name == "shop"
    assert known.identify("bearer old", ()).name == "shop"
    assert known.identify("", ("other", "bank.example")).name == "bank"


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer wrong", "Basic b2xk", "old", "Bearer  ", "Bearer \udcff"])
def test_nobody_else_is_let_in(tmp_path: pathlib.Path, clock: Clock, shown: str) -> None:
    """Neither without a key nor with another, and the sentence does not repeat it."""
    known = tenants(tmp_path, f'[tenants.shop]\nkeys = ["{hashed("old")}"]\n', clock)
    with pytest.raises(Unauthenticated) as caught:
        known.identify(shown, ("stranger",))
    assert "wrong" not in str(caught.value)


def test_without_a_file_everybody_is_the_fixed_tenant(clock: Clock) -> None:
    """Whatever they show."""
    known = Tenants(None, default="default", workers=1, clock=clock)
    assert known.identify(bearer("x"), ("y",)).name == "default"


def test_signals_that_are_not_named_are_forbidden(tmp_path: pathlib.Path, clock: Clock) -> None:
    """And the sentence names the tenant and the signal."""
    shop = tenants(tmp_path, f'[tenants.shop]\nkeys = ["{hashed("k")}"]\nsignals = ["logs"]\n', clock).identify(
        bearer("k"), ()
    )
    shop.check("logs")
    with pytest.raises(Forbidden, match="shop may not send traces"):
        shop.check("traces")


@pytest.mark.parametrize("unit", ["records", "bytes"])
def test_a_rate_has_a_burst_and_says_when_to_come_again(tmp_path: pathlib.Path, clock: Clock, unit: str) -> None:
    """100 a second with a burst of 2 s: 200 at once, then debts are waited for; workers share the rate."""
    shop = tenants(
        tmp_path, f'[tenants.shop]\nkeys = ["{hashed("k")}"]\n{unit}_per_s = 200\nburst_s = 2\n', clock, workers=2
    ).identify(bearer("k"), ())
    take = {"records": lambda n: shop.take(records=n), "bytes": lambda n: shop.take(size=n)}[unit]
    for _ in range(2):
        shop.check("logs")
        take(100)
    with pytest.raises(Throttled, match=f"over its {unit}_per_s"):
        shop.check("logs")
    clock.now_s += 0.5
    shop.check("logs")
    take(550)
    with pytest.raises(Throttled) as caught:
        shop.check("logs")
    clock.now_s += caught.value.wait_s * 0.9
    with pytest.raises(Throttled):
        shop.check("logs")
    clock.now_s += caught.value.wait_s * 0.11
    shop.check("logs")


def test_who_is_silent_for_long_has_one_burst(tmp_path: pathlib.Path, clock: Clock) -> None:
    """However long a tenant sent nothing: what it did not use is no later flood."""
    rate = "records_per_s = 100\nburst_s = 2\n"
    shop = tenants(tmp_path, f'[tenants.shop]\nkeys = ["{hashed("k")}"]\n{rate}', clock).identify(bearer("k"), ())
    clock.now_s += 3600
    shop.check("logs")
    shop.take(records=200)
    with pytest.raises(Throttled):
        shop.check("logs")


def test_a_changed_file_changes_who_is_let_in_and_keeps_debts(tmp_path: pathlib.Path, clock: Clock) -> None:
    """A tenant that did not change does not get a new burst; one that is gone is not let in."""
    shop = f'[tenants.shop]\nkeys = ["{hashed("k")}"]\nrecords_per_s = 1\nburst_s = 1\n'
    known = tenants(tmp_path, shop + f'[tenants.bank]\nkeys = ["{hashed("b")}"]\n', clock)
    known.identify(bearer("k"), ()).take(records=5)
    (tmp_path / "tenants.toml").write_text(shop + f'[tenants.new]\nkeys = ["{hashed("n")}"]\n')
    known.reload()
    assert known.identify(bearer("n"), ()).name == "new"
    with pytest.raises(Unauthenticated):
        known.identify(bearer("b"), ())
    with pytest.raises(Throttled):
        known.identify(bearer("k"), ()).check("logs")


def test_a_file_that_does_not_read_changes_nothing(tmp_path: pathlib.Path, clock: Clock) -> None:
    """Who was known stays known."""
    known = tenants(tmp_path, f'[tenants.shop]\nkeys = ["{hashed("k")}"]\n', clock)
    for text in ("[tenants.shop", "[tenants.shop]\nkeys = 3\n"):
        (tmp_path / "tenants.toml").write_text(text)
        with pytest.raises(Misconfigured):
            known.reload()
    (tmp_path / "tenants.toml").unlink()
    with pytest.raises(Misconfigured, match="cannot be read"):
        known.reload()
    assert known.identify(bearer("k"), ()).name == "shop"


def test_all_problems_of_a_file_are_told_at_once_and_no_key(tmp_path: pathlib.Path, clock: Clock) -> None:
    """A key that was not hashed is named by its place."""
    with pytest.raises(Misconfigured) as caught:
        tenants(
            tmp_path,
            f'[tenants.shop]\nkeys = ["{SECRET}"]\nsignals = ["smoke"]\nrecords_per_s = -1\nbirst_s = 3\n[tenants."A.B"]\n',
            clock,
        )
    problems = caught.value.problems
    for name in ("shop.keys.0", "shop.signals", "shop.records_per_s", "shop.birst_s", "A.B"):
        assert any(name in problem for problem in problems), name
    assert not any(SECRET in problem for problem in problems)


def test_one_key_has_one_owner(tmp_path: pathlib.Path, clock: Clock) -> None:
    """Two tenants with one key or certificate are a mistake."""
    both = f'keys = ["{hashed("k")}"]\ncertificates = ["c"]\n'
    with pytest.raises(Misconfigured) as caught:
        tenants(tmp_path, f"[tenants.a]\n{both}[tenants.b]\n{both}", clock)
    assert [".keys" in problem or ".certificates" in problem for problem in caught.value.problems] == [True, True]
