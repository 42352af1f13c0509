"""The histogram functions of PostgreSQL, against numpy and against what the parts were made of."""

import itertools
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

examples = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
quantiles = st.floats(0, 1)
FINE = 6  # scale at which observations of exponential histograms are made up


def ask(database: psycopg.Connection, expression: str, *parameters: Any) -> Any:
    row = database.execute(f"SELECT {expression}".encode(), parameters).fetchone()
    assert row
    return row[0]


def refused(database: psycopg.Connection, expression: str, *parameters: Any) -> str:
    """The sentence of the error."""
    with pytest.raises(psycopg.errors.InvalidParameterValue) as caught:
        ask(database, expression, *parameters)
    return str(caught.value.diag.message_primary)


# Explicit bounds

EXPLICIT = "(%s::double precision[], %s::bigint[])::explicit_histogram"
BY_HAND: list[tuple[float, list[float] | None, list[int], float | None]] = [
    (0.5, [1, 2, 4], [10, 10, 0, 0], 1.0),
    (0.75, [1, 2, 4], [10, 10, 0, 0], 1.5),
    (0.25, [1, 2, 4], [10, 10, 0, 0], 0.5),
    (0.99, [1, 2, 4], [0, 0, 0, 5], 4.0),  # the last bucket is open: its lower bound is all that is known
    (0.5, [-1, 1], [10, 0, 0], -1.0),  # so is the first, below zero
    (1.0, [1, 2], [0, 4, 0], 2.0),
    (0.0, [1, 2], [0, 4, 0], 1.0),
    (0.5, [1, 2], [0, 0, 0], None),
    (0.5, [], [7], None),
    (0.5, [], [], None),
    (0.5, [1, 2], [1, 2], None),
    (0.5, None, [1], None),
]


def test_quantiles_by_hand(database: psycopg.Connection) -> None:
    """Linear interpolation inside a bucket, the open buckets and the cases without an answer."""
    for q, bounds, counts, quantile in BY_HAND:
        found = ask(database, "histogram_quantile(%s, %s::double precision[], %s::bigint[])", q, bounds, counts)
        assert found == quantile, (q, bounds, counts)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_a_quantile_that_is_none_is_refused(database: psycopg.Connection, q: float) -> None:
    """By every function, with a sentence that says what is one."""
    for function in (
        "histogram_quantile(%s, '{1}', '{1,1}'::bigint[])",
        "histogram_quantile(%s, (0, 0, 0, 0, '{1}', 0, '{}')::exponential_histogram)",
        "summary_quantile(%s, '{0.5}', '{1}')",
    ):
        said = refused(database, function, q)
        assert said.startswith("A quantile is between 0 and 1, not "), said


MOST = (1 << 63) - 1
HUGE = 1.7976931348623157e308
BOUNDS = "histogram_quantile(%s, %s::double precision[], %s::bigint[])"
SUMMARY = "summary_quantile(%s, %s::double precision[], %s::double precision[])"


@pytest.mark.parametrize(
    ("expression", "parameters", "quantile"),
    [
        (BOUNDS, (0.9, [1.0, 10.0, HUGE], [1, 1, 8, 0]), 0.875 * HUGE),
        (BOUNDS, (0.9, [0.0, 1e300], [0, 3_000_000_000, 0]), 9e299),
        (BOUNDS, (0.75, [-HUGE, HUGE], [0, 4, 0]), HUGE / 2),
        (BOUNDS, (0.5, [1e-310, 2e-310], [0, 4, 0]), 2e-310),
        (BOUNDS, (0.5, [1.0, math.inf], [0, 4, 0]), math.inf),
        (BOUNDS, (5e-324, [5e-324, 1.0], [4, 4, 0]), 0.0),
        ("histogram_quantile(%s, (0, 4, %s, 0, '{}', 0, '{}')::exponential_histogram)", (0.25, HUGE), -HUGE / 2),
        ("histogram_quantile(%s, (1000, 0, 0, 0, '{1}', 0, '{}')::exponential_histogram)", (5e-324,), 1.0),
        (SUMMARY, (0.5, [0.25, 0.75], [-1.7e308, 1.7e308]), 0.0),
        (SUMMARY, (0.5, [0.4, 0.9], [0.0, 5e-324]), 0.0),
        (SUMMARY, (5e-324, [0.0, 1e308], [0.0, 1.0]), None),  # 1e308 is no quantile
    ],
)
def test_no_point_is_too_strange_for_an_answer(
    database: psycopg.Connection, expression: str, parameters: tuple[Any, ...], quantile: float | None
) -> None:
    """Between the largest and smallest doubles too: an error would keep all other series from theirs."""
    assert ask(database, expression, *parameters) == (quantile and pytest.approx(quantile, rel=1e-12, abs=0))


bounded = st.lists(st.integers(-50, 50), min_size=1, max_size=12, unique=True).map(sorted)
observations = st.lists(st.floats(-60, 60), min_size=1, max_size=60)


def counted(bounds: list[int], values: list[float]) -> list[int]:
    """Counts of (-inf, b1], (b1, b2], …, (bn, inf)."""
    found = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds) + 1)
    return [int(count) for count in found]


@examples
@given(quantiles, bounded, observations)
def test_a_quantile_lies_in_the_bucket_of_numpys(
    database: psycopg.Connection, q: float, bounds: list[int], values: list[float]
) -> None:
    """Between the bounds around the observation of that rank, and where Prometheus' straight line meets the rank."""
    counts = counted(bounds, values)
    found = ask(database, f"histogram_quantile(%s, {EXPLICIT})", q, bounds, counts)
    exact = np.quantile(values, q, method="inverted_cdf")
    bucket = int(np.searchsorted(bounds, exact, side="left"))
    lower, upper = [-math.inf, *bounds, math.inf][bucket : bucket + 2]
    if bucket == len(bounds):
        assert found == bounds[-1]
    elif bucket == 0 and upper <= 0:
        assert found == bounds[0]
    else:
        start = 0 if bucket == 0 else lower
        below = sum(counts[:bucket])
        line = np.interp(q * len(values), [below, below + counts[bucket]], [start, upper])
        assert start <= found <= upper
        assert found == pytest.approx(line)


@examples
@given(bounded, st.lists(observations, min_size=1, max_size=6))
def test_the_sum_of_parts_is_the_whole(
    database: psycopg.Connection, bounds: list[int], parts: list[list[float]]
) -> None:
    """Histograms added up, absent ones among them, are the histogram of all observations."""
    rows = ", ".join(f"({EXPLICIT})" for _ in parts)
    values = itertools.chain.from_iterable((bounds, counted(bounds, part)) for part in parts)
    found = ask(
        database, f"((histogram_sum(h)).counts, (histogram_sum(h)).bounds) = (%s::bigint[], %s::double precision[])"
        f" FROM (VALUES (NULL), {rows}) AS v (h)", counted(bounds, [*itertools.chain(*parts)]), bounds, *values,
    )  # fmt: skip
    assert found is True


@pytest.mark.parametrize(("bounds", "counts"), [([1, 3], [1, 2, 3]), ([1], [1, 2]), ([1, 2], [1, 2])])
def test_unequal_bounds_have_no_sum(database: psycopg.Connection, bounds: list[int], counts: list[int]) -> None:
    """The sentence names both and the way out."""
    said = refused(
        database,
        f"histogram_sum(h) FROM (VALUES ({EXPLICIT}), ({EXPLICIT})) AS v (h)",
        [1, 2],
        [1, 2, 3],
        bounds,
        counts,
    )
    text = ",".join(map(str, bounds))
    assert said == f"Histograms with bounds {{1,2}} and {{{text}}} have no sum: GROUP BY explicit_bounds too."


@examples
@given(bounded, observations, observations)
def test_a_delta_is_what_came_between(
    database: psycopg.Connection, bounds: list[int], early: list[float], more: list[float]
) -> None:
    """Of two points of a cumulative series; of the first one there is none; all of the later one after a restart."""
    first, second = counted(bounds, early), counted(bounds, early + more)
    delta = f"(histogram_delta({EXPLICIT}, {EXPLICIT})).counts"
    assert ask(database, delta, bounds, first, bounds, second) == counted(bounds, more)
    assert ask(database, delta, bounds, second, bounds, first) == first
    assert ask(database, delta, [*bounds, 99], [*second, 0], bounds, second) == second
    assert ask(database, f"histogram_delta(NULL, {EXPLICIT})", bounds, first) is None


# Exponential


class Exponential(NamedTuple):
    """As the columns of metrics_exponential_histograms."""

    scale: int
    zero_count: int
    zero_threshold: float
    positive_offset: int
    positive_counts: list[int]
    negative_offset: int
    negative_counts: list[int]

    def buckets(self) -> tuple[int, dict[tuple[int, int], int]]:
        """Scale, and the count of each (sign, index) that has one; the zero bucket is (0, 0)."""
        found = {(0, 0): self.zero_count}
        for sign, offset, counts in (
            (1, self.positive_offset, self.positive_counts), (-1, self.negative_offset, self.negative_counts),
        ):  # fmt: skip
            found |= {(sign, offset + n): count for n, count in enumerate(counts)}
        return self.scale, {bucket: count for bucket, count in found.items() if count}


EXPONENTIAL = "(%s, %s, %s, %s, %s::bigint[], %s, %s::bigint[])::exponential_histogram"
FIELDS = ", ".join(f"(h).{field}" for field in Exponential._fields)
Observed = list[tuple[int, int]]  # sign and index at scale FINE: in the middle of that bucket; sign 0 is zero


def exponential(observed: Observed, scale: int, threshold: float = 0.0) -> Exponential:
    """The histogram that an SDK makes of them."""
    sides = []
    for sign in (1, -1):
        found = Counter(index >> (FINE - scale) for each, index in observed if each == sign)
        first, last = (min(found), max(found)) if found else (0, -1)
        sides += [first, [found[index] for index in range(first, last + 1)]]
    return Exponential(scale, sum(sign == 0 for sign, _ in observed), threshold, *sides)  # type: ignore[arg-type]


def read(database: psycopg.Connection, expression: str, *parameters: Any) -> Exponential:
    row = database.execute(f"SELECT {FIELDS} FROM (SELECT {expression}) AS v (h)".encode(), parameters).fetchone()
    assert row
    return Exponential(*row)


def summed(database: psycopg.Connection, *parts: Exponential) -> Exponential:
    rows = ", ".join(f"({EXPONENTIAL})" for _ in parts)
    return read(database, f"histogram_sum(p) FROM (VALUES {rows}) AS v (p)", *itertools.chain(*parts))


scales = st.integers(-3, FINE)
observed_values = st.lists(st.tuples(st.sampled_from([-1, 0, 1, 1]), st.integers(-400, 400)), max_size=40)


def value(sign: int, index: int) -> float:
    return sign * 2.0 ** ((index + 0.5) * 2.0**-FINE)


@examples
@given(quantiles, observed_values.filter(bool), scales)
def test_an_exponential_quantile_lies_in_the_bucket_of_numpys(
    database: psycopg.Connection, q: float, observed: Observed, scale: int
) -> None:
    """Between the bounds of the bucket with the observation of that rank, where Prometheus' curve meets the rank."""
    h = exponential(observed, scale)
    found = ask(database, f"histogram_quantile(%s, {EXPONENTIAL})", q, *h)
    in_order = sorted(observed, key=lambda one: value(*one))
    rank = q * len(observed)
    values = [value(*one) for one in in_order]
    exact = np.quantile(values, q, method="inverted_cdf")
    sign, index = in_order[values.index(exact)]
    index >>= FINE - scale
    same = [
        place
        for place, one in enumerate(in_order)
        if (one[0], one[1] >> (FINE - scale)) == (sign, index) or one[0] == sign == 0
    ]
    part = (rank - same[0]) / len(same)
    base = 2.0**2.0**-scale
    if sign == 0:
        assert found == 0
    else:
        lower, upper = sorted((sign * base**index, sign * base ** (index + 1)))
        assert lower * (1 - sign * 1e-12) <= found <= upper * (1 + sign * 1e-12)
        exponent = index + part if sign > 0 else index + 1 - part
        assert found == pytest.approx(sign * base**exponent)


@examples
@given(st.lists(st.tuples(observed_values, scales), min_size=1, max_size=5))
def test_exponential_parts_of_any_scales_add_up_to_the_whole(
    database: psycopg.Connection, parts: list[tuple[Observed, int]]
) -> None:
    """At the smallest scale among them, as if one SDK had seen it all."""
    found = summed(database, *(exponential(observed, scale) for observed, scale in parts))
    everything = [one for observed, _ in parts for one in observed]
    assert found.buckets() == exponential(everything, min(scale for _, scale in parts)).buckets()


@examples
@given(observed_values, scales, observed_values, scales)
def test_an_exponential_delta_is_what_came_between(
    database: psycopg.Connection, early: Observed, scale: int, more: Observed, finer: int
) -> None:
    """Also where the SDK has changed its scale between the two; all of the later one after a restart."""
    scale, finer = max(scale, finer), min(scale, finer)
    first, second = exponential(early, scale), exponential(early + more, finer)
    found = read(database, f"histogram_delta({EXPONENTIAL}, {EXPONENTIAL})", *first, *second)
    assert found.buckets() == exponential(more, finer).buckets()
    if more:
        restarted = read(database, f"histogram_delta({EXPONENTIAL}, {EXPONENTIAL})", *second, *first)
        assert restarted.buckets() == first.buckets()


def test_a_sum_has_at_most_1024_buckets_a_side(database: psycopg.Connection) -> None:
    """What lies far apart is added at a scale at which it fits; nothing of it is lost."""
    most = (1 << 31) - 1
    near, far = Exponential(20, 0, 0, -5, [1, 2, 3], 0, []), Exponential(20, 1, 0, most, [4], -most, [5, 6])
    found = summed(database, near, far)
    assert (sum(found.positive_counts), sum(found.negative_counts), found.zero_count) == (10, 11, 1)
    assert len(found.positive_counts) <= 1024
    assert found.scale > 20 - 23
    assert ask(database, f"histogram_quantile(1, {EXPONENTIAL})", *found) == math.inf


def test_counts_and_scales_never_get_too_large(database: psycopg.Connection) -> None:
    """A count that no bigint holds is the largest; buckets as far apart as can be have a sum at the smallest scale."""
    assert ask(
        database, f"(histogram_sum(h)).counts FROM (VALUES ({EXPLICIT}), ({EXPLICIT})) AS v (h)", [1], [MOST, 1], [1],
        [1 << 62, 1],
    ) == [MOST, 2]  # fmt: skip
    full = Exponential(0, MOST, 1.0, 0, [MOST, MOST], 0, [MOST, 1])
    found = summed(database, full, full._replace(scale=-1))
    assert found == Exponential(-1, MOST, 1.0, 0, [MOST, MOST], 0, [MOST, 1])
    delta = f"histogram_delta({EXPONENTIAL}, {EXPONENTIAL})"
    assert read(database, delta, *full, *found).buckets() == (-1, {(1, 1): MOST, (-1, 1): 1})
    first, last = (Exponential(-(1 << 31), 0, 0.0, end, [1], 0, []) for end in (-(1 << 31), (1 << 31) - 1))
    assert sum(summed(database, first, last).positive_counts) == 2


@pytest.mark.parametrize("threshold", [3.0, 4.0])
def test_the_larger_zero_bucket_takes_what_it_reaches(database: psycopg.Connection, threshold: float) -> None:
    """Buckets that begin below the larger threshold are in it; it grows to the end of the one that it cuts."""
    wide, narrow = (
        Exponential(0, 7, threshold, 2, [1], 0, []),
        Exponential(0, 1, 0.0, -1, [1, 10, 100, 1000], 1, [5, 50]),
    )
    found = summed(database, wide, narrow)
    assert found.buckets() == (0, {(0, 0): 7 + 1 + 1 + 10 + 100 + 5, (1, 2): 1001, (-1, 2): 50})
    assert found.zero_threshold == 4.0


@pytest.mark.parametrize(
    ("h", "q", "quantile"),
    [
        (Exponential(0, 4, 2.0, 1, [4], 0, []), 0.25, 1.0),  # of the zero bucket: from 0, there is nothing below
        (Exponential(0, 4, 2.0, 0, [], 1, [4]), 0.75, -1.0),
        (Exponential(0, 4, 2.0, 0, [], 0, []), 0.25, -1.0),
        (Exponential(0, 4, 2.0, 1, [4], 1, [4]), 0.5, 0.0),
        (Exponential(0, 0, 0.0, 0, [], 0, []), 0.5, None),
        (Exponential(-(1 << 31), 0, 0.0, 0, [1], 0, []), 0.0, 1.0),
        (Exponential(-(1 << 31), 0, 0.0, 0, [1], 0, []), 1.0, math.inf),
        (Exponential(-(1 << 31), 0, 0.0, -1, [1], 0, []), 0.0, 0.0),
        (Exponential((1 << 31) - 1, 0, 0.0, -(1 << 31), [1], (1 << 31) - 1, []), 0.5, 1.0),
        (Exponential(0, (1 << 63) - 1, 0.0, 1023, [(1 << 63) - 1] * 2, 0, []), 0.0, 0.0),
    ],
)
def test_exponential_quantiles_by_hand(
    database: psycopg.Connection, h: Exponential, q: float, quantile: float | None
) -> None:
    """The zero bucket, and the ends of what a double, a scale and a count may be."""
    assert ask(database, f"histogram_quantile(%s, {EXPONENTIAL})", q, *h) == quantile


# Summaries


@examples
@given(
    quantiles,
    st.dictionaries(st.sampled_from([n / 20 for n in range(21)]), st.integers(-9, 9), min_size=1),
    st.randoms(),
)
def test_a_summary_answers_between_its_quantiles(
    database: psycopg.Connection, q: float, known: dict[float, int], chance: Any
) -> None:
    """By numpy's straight line, in whatever order they came; null outside of them."""
    pairs = list(known.items())
    chance.shuffle(pairs)
    found = ask(
        database, "summary_quantile(%s, %s::double precision[], %s::double precision[])",
        q, [quantile for quantile, _ in pairs], [number for _, number in pairs],
    )  # fmt: skip
    in_order = sorted(known)
    if in_order[0] <= q <= in_order[-1]:
        assert found == pytest.approx(np.interp(q, in_order, [known[each] for each in in_order]))
    else:
        assert found is None
