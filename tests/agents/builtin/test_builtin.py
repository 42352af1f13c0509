"""What each built-in agent promises on its page, in this process."""

import pathlib
import random
import re
import time
from typing import Any

import pytest

from pipeline.agents import LogRecord, Record, Span, builtin, laws
from pipeline.agents.builtin import redact, sample
from pipeline.agents.builtin.log_patterns import pattern_of
from pipeline.agents.load import load, settings_of
from pipeline.errors import Misconfigured
from pipeline.record import container, schema
from pipeline.record.layout import RECORDS
from pipeline.record.records import TYPES
from pipeline.settings import Settings
from tests.agents.builtin.run import Here, found, names, of_records, together

NOW = 1_795_000_000 * 10**9
SECRETS = {
    "email": ("ann@example.com", "ann%40example.com", "grüße@bücher.example", "o'neil+x@mail.example.co.uk"),
    "card": ("4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"),
    "token": (
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "AKIAABCDEFGHIJKLMNOP", "ghp_0123456789abcdefghijABCD",
        "sk_live_0123456789abcdef", "xoxb-123456789012-abcdef",
    ),
    "ip": ("10.20.30.40", "2001:db8::7334", "fe80::1", "::ffff:10.1.2.3"),
}  # fmt: skip
CASES = [(kind, secret) for kind, secrets in SECRETS.items() for secret in secrets]


@pytest.fixture
def table(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "services.csv"
    file.write_text("service,team,tier\nshop,payments,1\nother,x,\n")
    return file


@pytest.mark.parametrize("name", names())
def test_every_built_in_keeps_the_laws(name: str, table: pathlib.Path) -> None:
    """On generated records: the same answer from two processes, alone and among others, which its schema reads."""
    own = {"table": str(table)} if name.startswith("enrich") else {}
    one, other = Here(name, **own), Here(name, **own)
    signal: Any = one.agent.reads.removesuffix("_raw")
    verdict = laws.judge(one.agent, signal, (one, other), [], examples=25)  # type: ignore[arg-type]
    assert not verdict.broken, str(verdict)


def test_every_built_in_has_a_page_that_names_its_topics() -> None:
    """`pipeline agents show` tells of each what it reads and writes."""
    for name in builtin.names():
        page = builtin.page(name)
        assert "Reads `" in page or "read `" in page, name


def filled(signal: Any, text: str) -> Record:
    """A record that says `text` wherever a record can hold text."""

    def value(of: Any) -> Any:
        if of == "string":
            return text
        if isinstance(of, dict) and of["type"] == "map":
            return {"a key": text, f"key {text}": "value"}
        if isinstance(of, dict) and of["type"] == "array" and isinstance(of["items"], dict):
            return (RECORDS[of["items"]["name"]](**{f["name"]: value(f["type"]) for f in of["items"]["fields"]}),)
        return {"long": 1, "int": 1, "double": 1.0, "boolean": True, "bytes": b"\1" * 8}.get(str(of))

    fields = {field["name"]: value(field["type"]) for field in schema.of(signal).avro["fields"]}
    given = ("event_id", "region", "received_time", "tenant", "series_id")
    return TYPES[signal](**{name: each for name, each in fields.items() if each is not None and name not in given})


@pytest.mark.parametrize("signal", schema.SIGNALS)
def test_no_secret_is_left_in_any_field_of_any_signal(signal: Any) -> None:
    """Wherever a record can hold text, in the midst of other text, each of the secrets is gone from its bytes."""
    here = Here(f"redact_{signal}")
    for kind, secret in CASES:
        made = here.transform(of_records(filled(signal, f"before {secret} after"), filled(signal, secret)))
        assert not made.failed
        for output in made.outputs:
            assert secret.encode() not in output.value, (kind, secret)
            assert f"[{kind}]".encode() in output.value, (kind, secret)


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112", "41111111111111111111", "std::vector a::b", "at 12:34:56 took 1.2.3", "aa:bb:cc:dd:ee:ff",
        "2026-11-20T10:00:00.123+00:00", "550e8400-e29b-41d4-a716-446655440000", "1795000000000000000",
        "Basic authentication failed", "user@localhost", "password", "256.1.1", "0000000000000000",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    """A wrong check digit, times, ids, names of classes and words beside a secret's name are left as they are."""
    assert redact.Redactor(redact.Settings()).text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password=hunter2 x", "password=[secret] x"),
        ("password=[secretsauce] x", "password=[secret] x"),
        ('{"password": "hunter2", "a": 1}', '{"password": "[secret]", "a": 1}'),
        ("Authorization: Bearer abcdefghijklmnop123", "Authorization: Bearer [secret]"),
        ("postgres://u:hunter2@db:5432/x", "postgres://u:[secret]@db:5432/x"),
        ("2026-11-20 4111111111111111 4111", "2026-11-20 [card] 4111"),
        ("[2001:db8::1]:443 ip:fe80::1.", "[[ip]]:443 ip:[ip]."),
        ("GET /u?mail=ann@example.com&n=1", "GET /u?mail=[email]&n=1"),
    ],
)
def test_what_is_around_a_secret_stays(text: str, expected: str) -> None:
    """Only the secret becomes a mark, and a text that is redacted already stays as it is."""
    redactor = redact.Redactor(redact.Settings())
    assert redactor.text(text) == expected
    assert redactor.text(expected) == expected


def test_attributes_by_key_keep_and_keyed_marks(tmp_path: pathlib.Path) -> None:
    """A secret key's value goes whole; a kept key's stays; with a key equal secrets have equal marks and others not."""
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    here = Here("redact_logs", keep=["client.address"], key_file=str(key), patterns={"order": "ORD-[0-9]{8}"})
    attributes = {
        "http.request.header.Authorization": "x", "client.address": "10.0.0.1", "a@b.example": "1", "c@d.example": "2",
    }  # fmt: skip
    record = LogRecord(body="a@b.example ORD-12345678 a@b.example c@d.example", attributes=attributes)
    [made] = here.records(of_records(record))
    assert re.fullmatch(r"(\[email:\w{16}\]) \[order:\w{16}\] \1 (?!\1)\[email:\w{16}\]", made["body"])
    assert made["attributes"]["client.address"] == "10.0.0.1"
    assert re.fullmatch(r"\[secret:\w{16}\]", made["attributes"]["http.request.header.Authorization"])
    assert sorted(made["attributes"].values())[:2] == ["1", "10.0.0.1"]
    assert "2" in made["attributes"].values()


def test_keys_that_become_equal_are_counted() -> None:
    """No attribute is lost because two keys held different secrets."""
    record = LogRecord(attributes={"a@b.example": "1", "c@d.example": "2", "[email]": "3"})
    [made] = Here("redact_logs").records(of_records(record))
    assert made["attributes"] == {"[email]": "3", "[email]#2": "1", "[email]#3": "2"}


@pytest.mark.parametrize("pattern", ["(a+)+\\1", "(?=a)b", "(", "a*"])
def test_a_pattern_that_could_take_for_ever_is_refused(pattern: str) -> None:
    """What RE2 does not take, and what matches nothing at all, is a problem that names the pattern."""
    with pytest.raises(Misconfigured, match=r"agents\.redact_logs\.patterns: .*mine"):
        settings_of(found("redact_logs"), Settings(agents={"redact_logs": {"patterns": {"mine": pattern}}}))


@pytest.mark.parametrize("text", ["1 ", "a@", ":", "1:", "password=", "1.", "4111 ", "%40", "eyJ", "(a", "://u:"])
def test_a_hostile_text_takes_linear_time(text: str) -> None:
    """64 KiB of what nearly is a secret take at most a few times what 16 KiB of it take."""
    redactor = redact.Redactor(redact.Settings(patterns={"evil": "(a|a?)+b"}))
    needed = []
    for size in (16_384, 65_536):
        hostile = (text * size)[:size]
        began = time.process_time()
        redactor.text(hostile)
        needed.append(time.process_time() - began)
    assert needed[1] < 8 * needed[0] + 0.1


def spans(count: int, **fields: Any) -> list[Span]:
    rng = random.Random(5)
    return [
        Span(
            trace_id=rng.randbytes(16), span_id=rng.randbytes(8), start_time=NOW, end_time=NOW + 10**6, **{"name": "x", **fields}
        )
        for _ in range(count)
    ]  # fmt: skip


def kept(given: list[Span], **own: Any) -> list[Any]:
    return [each for each in Here("sample", **own).records(of_records(*given)) if "trace_id" in each]


def test_a_sample_tells_the_total() -> None:
    """The sum of the adjusted counts is near the number of spans, and tracestate's threshold gives the same counts."""
    left = kept(spans(4000), ratio=0.25)
    counts = [float(each["attributes"]["sampling.adjusted_count"]) for each in left]
    assert 3600 < sum(counts) < 4400
    assert {each["trace_state"] for each in left} == {"ot=th:c"}
    assert set(counts) == {4.0}


def test_samplers_agree() -> None:
    """Of two ratios the smaller keeps a part of what the larger keeps, and one after the other is as the smaller."""
    given = spans(2000)
    few, many = ({each["trace_id"] for each in kept(given, ratio=ratio)} for ratio in (0.1, 0.3))
    assert few < many
    chosen = [each for each in given if each.trace_id in many]
    after = [each.replace(trace_state="ot=th:b333333333333") for each in chosen]
    assert {each["trace_id"] for each in kept(after, ratio=0.1)} == few
    assert {each["attributes"]["sampling.adjusted_count"] for each in kept(after, ratio=0.9)} == {"3.333333333"}


def test_errors_and_slow_spans_stay_and_count_as_themselves() -> None:
    """A span that failed or took long is kept whatever its trace, with a count of one."""
    failed, slow = spans(200, status_code=2), [each.replace(end_time=NOW + 2 * 10**9) for each in spans(200)]
    for given in (failed, slow):
        left = kept(given, ratio=0.01)
        assert len(left) == 200
        assert {each["attributes"]["sampling.adjusted_count"] for each in left} == {"1"}


def test_an_error_that_another_sampler_chose_counts_as_it_said() -> None:
    """It stays for sure from here on, and still stands for those that were left out before."""
    [chosen] = spans(1, status_code=2, trace_state=f"ot=th:8;rv:{'f' * 14}")
    [left] = kept([chosen], ratio=0.01)
    assert left["attributes"]["sampling.adjusted_count"] == "2"
    assert left["trace_state"] == chosen.trace_state


def test_tracestate_of_others_stays() -> None:
    """Other vendors' members, an explicit randomness and what else `ot` says are kept; rv decides."""
    [low, high] = spans(2)
    state = "vendor=a:b;c, ot=rv:{};p:8;th:zz,other=1"
    given = [low.replace(trace_state=state.format("0" * 14)), high.replace(trace_state=state.format("f" * 14))]
    [left] = kept(given, ratio=0.5)
    assert left["trace_state"] == f"ot=th:8;rv:{'f' * 14};p:8,vendor=a:b;c,other=1"


@pytest.mark.parametrize(("ratio", "digits"), [(1.0, "0"), (0.5, "8"), (0.25, "c"), (2**-56, "ffffffffffffff")])
def test_thresholds_are_as_the_specification_says(ratio: float, digits: str) -> None:
    """Source: OpenTelemetry's table of probabilities and thresholds."""
    assert sample.parsed("").written(sample.threshold_of(ratio)) == f"ot=th:{digits}"


def test_severity_drops_what_the_gateway_would_shed() -> None:
    """Below WARN, but neither what has no number nor what is an event; another limit for a service."""
    given = [
        LogRecord(service=service, severity_number=number, event_name=event)
        for service, number, event in (("a", 9, ""), ("a", 13, ""), ("a", 0, ""), ("a", 9, "e"), ("b", 9, ""), ("b", 1, ""))
    ]  # fmt: skip
    left = Here("severity", services={"b": "INFO"}).records(of_records(*given))
    assert [(each["service"], each["severity_number"]) for each in left if "body" in each] == [
        ("a", 13), ("a", 0), ("a", 9), ("b", 9)
    ]  # fmt: skip
    assert [each["reason"] for each in left if "reason" in each] == ["below WARN", "below INFO"]


def test_enrich_adds_and_does_not_replace(table: pathlib.Path) -> None:
    """A row's cells become resource attributes beside the table's version; what the record says itself stays."""
    here = Here("enrich_logs", table=str(table))
    given = of_records(
        LogRecord(service="shop", resource_attributes={"team": "mine"}), LogRecord(service="other"), LogRecord(service="no")
    )  # fmt: skip
    shop, other, unknown = (each["resource_attributes"] for each in here.records(given))
    version = shop.pop("enrich.table")
    assert (shop, other, unknown) == ({"team": "mine", "tier": "1"}, {"team": "x", "enrich.table": version}, {})


def test_a_changed_table_is_read_and_a_bad_one_is_not(table: pathlib.Path) -> None:
    """The next message has the new row and another version; a table that is not good leaves the one before."""
    here = Here("enrich_traces", table=str(table))

    def told() -> dict[str, str]:
        [made] = here.records(of_records(Span(service="shop")))
        found: dict[str, str] = made["resource_attributes"]
        return found

    before = told()
    table.write_text("service,team\nshop,new\n")
    after = told()
    assert (before["team"], after["team"]) == ("payments", "new")
    assert before["enrich.table"] != after["enrich.table"]
    table.write_text("service,team\nshop\nshop,x\n")
    assert told() == after
    table.unlink()
    assert told() == after
    table.write_text("service,team\nshop,back\n")
    assert told()["team"] == "back"


def test_a_bad_table_stops_the_agent_with_every_problem(table: pathlib.Path) -> None:
    """Each row that cannot be is named."""
    table.write_text("service,team,team\na,1\na,2,3\n")
    with pytest.raises(Misconfigured) as caught:
        Here("enrich_logs", table=str(table))
    assert [re.sub(r".*csv:? ?", "", each) for each in caught.value.problems] == [
        "1: the first line must name two columns or more, each once.",
        "row 2 has 2 cells; the first line has 3.",
        "row 3: a is there twice.",
    ]


@pytest.mark.parametrize(
    ("lines", "pattern"),
    [
        (("user 4711 from 10.0.0.7 paid 12.50", "user 42 from 10.0.0.9 paid 3"), "user <*> from <*> paid <*>"),
        (("GET /api/users/123?x=a5 200 12ms", "GET /api/users/9?x=b 404 1ms"), "GET /api/users/<*>?x=<*>"),
        (('{"level":"info","n":12}', '{"level":"warn","n":3}'), '{"level":<*>,"n":<*>}'),
        (("retry in 5, 6, 7", "retry in 5"), "retry in <*>"),
        (("can't open '/tmp/x'", "can't open '/var/y'"), "can't open <*>"),
        (("took=5ms  user=ann done", "took=7ms user=bob\tdone"), "took=<*> user=<*> done"),
        (("id 550e8400-e29b-41d4-a716-446655440000", "id deadbeefcafe"), "id <*>"),
    ],
)
def test_lines_that_differ_in_their_values_have_one_pattern(lines: tuple[str, str], pattern: str) -> None:
    """And so one id, whichever came first and after any restart."""
    assert {pattern_of(line, 60) for line in lines} == {pattern}
    ids = [
        each["attributes"]["log.pattern_id"]
        for order in (lines, lines[::-1])
        for each in Here("log_patterns").records(of_records(*(LogRecord(body=line) for line in order)))
    ]
    assert len(set(ids)) == 1


def test_span_metrics_add_up() -> None:
    """A point each service, operation, kind, status and minute; both metrics count every span, durations in buckets."""
    here = Here("span_metrics", bounds_s=[0.001, 1.0])
    given = [
        *spans(5),
        *spans(2, name="y", status_code=2, kind=2),
        *(s.replace(end_time=NOW + 61 * 10**9) for s in spans(3)),
    ]
    made = here.records(of_records(*given))
    calls = {
        (each["attributes"]["span.name"], each["attributes"]["status.code"], each["time"] // (60 * 10**9)): each[
            "value"
        ]
        for each in made
        if each["metric_name"] == "traces.span.metrics.calls"
    }
    minute = NOW // (60 * 10**9)
    assert calls == {
        ("x", "STATUS_CODE_UNSET", minute): 5, ("y", "STATUS_CODE_ERROR", minute): 2, ("x", "STATUS_CODE_UNSET", minute + 1): 3
    }  # fmt: skip
    buckets = [each["bucket_counts"] for each in made if each["metric_name"] == "traces.span.metrics.duration"]
    assert buckets == [[5, 0, 0], [2, 0, 0], [0, 0, 3]]


def test_span_metrics_of_a_request_are_the_same_in_any_company() -> None:
    """A request that is sent again shares its message with others; its points and their ids and times are the same."""
    here = Here("span_metrics")
    one, two = of_records(*spans(20)), of_records(*spans(30, name="other"))
    apart = here.records(one) + here.records(two)
    assert here.records(together([one, two])) == apart
    assert here.records(together([two, one])) == here.records(two) + here.records(one)


def test_requests_stay_apart_behind_another_agent() -> None:
    """What a record's agent emits keeps the blocks of what it read."""
    head = schema.of("traces").head
    both = together([of_records(*spans(20)), of_records(*spans(30))])
    [output] = Here("redact_traces").transform(both).outputs
    assert container.blocks(head, output.value) == container.blocks(head, both.value) == [20, 30]


def test_the_ends_of_a_call_meet_in_the_ids_of_the_clients_span() -> None:
    """Clients and servers alone are told, each once, with what the client calls its peer."""
    [client] = spans(1, kind=3, service="shop", attributes={"peer.service": "payments"})
    server = client.replace(kind=2, service="payments", span_id=b"s" * 8, parent_span_id=client.span_id, status_code=2)
    root = server.replace(parent_span_id=b"")
    made = Here("service_graph").records(of_records(client, server, root, client.replace(kind=1)))
    assert [(e["event_name"], e["service"], e["span_id"], e["attributes"]) for e in made] == [
        ("service_graph.client", "shop", client.span_id, {"calls": "1", "failed": "false", "peer": "payments"}),
        ("service_graph.server", "payments", client.span_id, {"calls": "1", "failed": "true"}),
    ]
    assert len({each["event_id"] for each in made}) == 2


def test_an_agent_between_other_topics_is_another_agent(tmp_path: pathlib.Path) -> None:
    """Declared in a file of one's own, with a name, topics and settings of its own."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from pipeline.agents.builtin.redact import redact_logs\n\n"
        'mask = redact_logs.between("mask", reads="logs_raw", writes="logs_clean")\n'
    )
    loaded = load([file, pathlib.Path("severity")])
    assert (list(loaded.agents), loaded.problems) == (["mask", "severity"], [])
    mask = loaded.agents["mask"]
    assert (mask.reads, mask.writes, mask.where) == ("logs_raw", ("logs_clean",), f"{file}:3")
    _, own = settings_of(mask, Settings(agents={"mask": {"find": ["ip"]}}))
    assert own.find == ("ip",)
