"""`python -m tests.bench queries`: what a reader's question costs, asked through the views, over a shop of five days.

Rows are made by the server and inserted in portions of a writer's batch, every tenth portion twice, with a later
receipt; merges do as they like meanwhile and stand still while questions are asked. Numbers are of system.query_log,
without the cache of conditions; the times are medians.
"""

import json
from collections.abc import Iterator

from clickhouse_connect.driver.client import Client

from pipeline import clickhouse, migrations
from pipeline.local import Stack
from pipeline.settings import Settings
from tests.bench import measured
from tests.bench.measured import Row
from tests.bench.writers import CLICKHOUSE_LOGS

COLUMNS = ("question", "rows", "ms", "CPU ms", "rows read", "MB read")
ROWS = {"logs_in": 6_000_000, "spans_in": 3_000_000, "metrics_points_in": 4_000_000}
TABLES = ("logs_events", "spans", "metrics_points", "metrics_1m_computed")
TIMES = 5
PORTION = 200_000
TWICE_EVERY = 10
START_NS = 1_780_012_800 * 10**9  # a midnight
DAYS_NS = 5 * 86_400 * 10**9
SERVICE = "concat('service-', leftPad(toString(n_service), 2, '0'))"
COMMON = f"""
    'eu' AS region, 'default' AS tenant, {SERVICE} AS service,
    concat('host-', toString(n_service * 5 + number % 5)) AS host,
    map('service.name', service, 'host.name', host, 'service.version', '1.42.0', 'cloud.region', 'eu-west-1',
        'service.instance.id', concat(host, '-0'), 'deployment.environment', 'production') AS resource_attributes,
    map('http.request.method', ['GET', 'POST'][1 + number % 2],
        'http.route', concat('/api/v1/resource/', toString(seed % 40)), 'order.id', hex(seed),
        'http.response.status_code', ['200', '404', '500'][1 + seed % 3],
        'customer.tier', ['gold', 'silver', 'bronze'][1 + seed % 3], 'thread.id', toString(seed % 64)) AS attributes
"""
MAKE = {
    # Twelve records a trace, 64 traces at a time; few services log much; one error in 1,000 to 33, by service; a word
    # that one record in 100,000 has.
    "logs_in": f"""
        SELECT MD5(concat('log', toString(number))) AS event_id, time + 2000000000 + {{later}} AS received_time,
            {COMMON}, {START_NS} + number * {{step}} AS time, time + 900 AS observed_time,
            if(seed % 1000 < [1, 1, 2, 5, 30][1 + n_service % 5], 17, 9) AS severity_number,
            if(severity_number = 17, 'ERROR', 'INFO') AS severity_text,
            concat(['order ', 'payment ', 'cart ', 'session '][1 + seed % 4], hex(seed),
                   if(severity_number = 17, ' failed after timeout of upstream for ', ' accepted for '), 'customer ',
                   hex(number), if(bitShiftRight(seed, 20) % 100000 = 0, ' in deadlock with ', ' and handed to '),
                   ['warehouse', 'billing', 'shipping', 'mailer'][1 + bitShiftRight(seed, 8) % 4]) AS body,
            'shop' AS scope_name, MD5(toString(trace)) AS trace_id, substring(MD5(toString(number)), 1, 8) AS span_id
        FROM (SELECT number, cityHash64(number) AS seed, intDiv(number, 768) * 64 + number % 64 AS trace,
                  toUInt8(20 * pow((seed % 10007) / 10007, 2)) AS n_service FROM numbers({{first}}, {{count}}))
    """,
    # Durations have a long tail: one in 300 takes over a second, one in 2,000 over ten.
    "spans_in": f"""
        SELECT MD5(concat('span', toString(number))) AS event_id, end_time + 2000000000 + {{later}} AS received_time,
            {COMMON}, MD5(toString(trace)) AS trace_id, substring(MD5(toString(number)), 1, 8) AS span_id,
            substring(MD5(toString(number - 64)), 1, 8) AS parent_span_id,
            concat('GET /api/v1/resource/', toString(seed % 40)) AS name, 2 AS kind,
            {START_NS} + number * {{step}} AS start_time,
            start_time + toInt64(1e6 * pow((1 + seed % 100003) / 100003, -1.2)) AS end_time,
            if(seed % 1000 < 5, 2, 0) AS status_code, 'shop' AS scope_name,
            if(seed % 20 = 0, [(start_time, 'exception', map('exception.type', 'KeyError'), 0)], []) AS events,
            if(seed % 100 = 0, [(unhex(hex(trace_id)), 'abcdefgh', '', map('kind', 'batch'), 0, 0)], []) AS links
        FROM (SELECT number, cityHash64(number) AS seed, intDiv(number, 768) * 64 + number % 64 AS trace,
                  toUInt8(20 * pow((seed % 10007) / 10007, 2)) AS n_service FROM numbers({{first}}, {{count}}))
    """,
    # 200 series of 10 names in 20 services, about three points a minute each.
    "metrics_points_in": f"""
        SELECT MD5(concat('point', toString(number))) AS event_id, time + 2000000000 + {{later}} AS received_time,
            {COMMON}, concat('shop.metric.', toString(bitShiftRight(series, 1) % 10)) AS metric_name, '1' AS unit,
            'gauge' AS type, 'unspecified' AS temporality, toInt64(cityHash64(series, 7)) AS series_id,
            {START_NS} + number * {{step}} AS time, seed / 1e9 AS value
        FROM (SELECT number, cityHash64(number) AS seed, number % 200 AS series, series % 20 AS n_service
              FROM numbers({{first}}, {{count}}))
    """,
}
NOON = f"fromUnixTimestamp64Nano({START_NS} + 216000000000000, 'UTC')"  # of the third day
TRACE = "lower(hex(MD5(toString({trace}))))"  # one of the middle
QUESTIONS = {
    "logs of a trace": f"SELECT timestamp, service, body FROM logs WHERE trace_id = {TRACE} ORDER BY timestamp",
    "logs of a trace, within an hour": f"""
        SELECT timestamp, service, body FROM logs
        WHERE trace_id = {TRACE} AND timestamp BETWEEN {NOON} - INTERVAL 30 MINUTE AND {NOON} + INTERVAL 30 MINUTE
    """,
    "a service, a day, a rare word": f"""
        SELECT timestamp, body FROM logs WHERE service = 'service-00' AND hasToken(body, 'deadlock')
        AND timestamp BETWEEN {NOON} - INTERVAL 12 HOUR AND {NOON} + INTERVAL 12 HOUR
    """,
    "all services, a day, a rare word": f"""
        SELECT timestamp, body FROM logs WHERE hasToken(body, 'deadlock')
        AND timestamp BETWEEN {NOON} - INTERVAL 12 HOUR AND {NOON} + INTERVAL 12 HOUR
    """,
    "errors by service, a day": f"""
        SELECT service, count() FROM logs WHERE severity_number >= 17
        AND timestamp BETWEEN {NOON} - INTERVAL 12 HOUR AND {NOON} + INTERVAL 12 HOUR GROUP BY service
    """,
    "the last errors of a service": """
        SELECT timestamp, body FROM logs WHERE service = 'service-03' AND severity_number >= 17
        ORDER BY timestamp DESC LIMIT 20
    """,
    "the last logs of a service": """
        SELECT timestamp, severity_text, body, trace_id, attributes FROM logs WHERE service = 'service-03'
        ORDER BY timestamp DESC LIMIT 100
    """,
    "spans of a trace": f"SELECT timestamp, service, name, duration_ns FROM traces WHERE trace_id = {TRACE}",
    "spans of a service over 10 s, six hours": f"""
        SELECT timestamp, trace_id, name, duration_ns FROM traces WHERE service = 'service-03'
        AND duration_ns > 10000000000 AND timestamp BETWEEN {NOON} AND {NOON} + INTERVAL 6 HOUR
    """,
    "p99 of a service by minute, six hours": f"""
        SELECT toStartOfMinute(timestamp) AS minute, quantile(0.99)(duration_ns) FROM traces
        WHERE service = 'service-03' AND timestamp BETWEEN {NOON} AND {NOON} + INTERVAL 6 HOUR GROUP BY minute
    """,
    "a series, a day": f"""
        SELECT timestamp, value FROM metrics WHERE metric_name = 'shop.metric.2' AND service = 'service-04'
        AND series_id = toInt64(cityHash64(4, 7))
        AND timestamp BETWEEN {NOON} - INTERVAL 12 HOUR AND {NOON} + INTERVAL 12 HOUR
    """,
    "all series of a metric, six hours, by minute": f"""
        SELECT toStartOfMinute(timestamp) AS minute, service, avg(value) FROM metrics
        WHERE metric_name = 'shop.metric.2' AND timestamp BETWEEN {NOON} AND {NOON} + INTERVAL 6 HOUR
        GROUP BY minute, service
    """,
    "the same from metrics_1m": f"""
        SELECT minute, service, sum(sum) / sum(count) FROM metrics_1m WHERE metric_name = 'shop.metric.2'
        AND minute BETWEEN {NOON} AND {NOON} + INTERVAL 6 HOUR GROUP BY minute, service
    """,
}


def run(stack: Stack, settings: Settings, *, scale: float, as_json: bool) -> None:
    """Measure and print."""
    found = list(measure(stack, settings, {table: round(rows * scale) for table, rows in ROWS.items()}))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        measured.show(found, COLUMNS)


def measure(stack: Stack, settings: Settings, rows: dict[str, int]) -> Iterator[Row]:
    """A row a question, on a stack of its own that is removed at the end."""
    stack.wipe()
    try:
        extra = settings.local.home / "clickhouse" / "config.d"
        extra.mkdir(parents=True)
        (extra / "logs.xml").write_text(CLICKHOUSE_LOGS)
        stack.start(["postgres", "clickhouse"])
        migrations.up_all(settings)
        client = clickhouse.connect(settings.clickhouse)
        for table, count in rows.items():
            fill(client, table, count)
        client.command("SYSTEM REFRESH VIEW metrics_1m_refresh")
        client.command("SYSTEM WAIT VIEW metrics_1m_refresh")
        client.command("SYSTEM STOP VIEW metrics_1m_refresh")
        for table in TABLES:
            client.command(f"SYSTEM STOP MERGES {table}")
        for question, query in QUESTIONS.items():
            half = rows["spans_in" if "FROM traces" in query else "logs_in"] // 2
            yield {"question": question, **ask(client, query.format(trace=half // 768 * 64))}
    finally:
        stack.wipe()


def fill(client: Client, table: str, rows: int) -> None:
    """Insert `rows` distinct records, evenly over the days."""
    for portion, first in enumerate(range(0, rows, PORTION)):
        count = min(PORTION, rows - first)
        for later_ns in (0, 5 * 10**9)[: 1 + (portion % TWICE_EVERY == 3)]:
            query = MAKE[table].format(first=first, count=count, later=later_ns, step=DAYS_NS // rows)
            columns = ", ".join(name for name, *_ in client.query(f"DESCRIBE ({query})").result_rows)
            client.command(f"INSERT INTO {table} ({columns}) {query}")


def ask(client: Client, query: str) -> Row:
    """What the query costs, the median of some times."""
    answers = [client.query(query, settings={"use_query_condition_cache": 0}) for _ in range(TIMES)]
    client.command("SYSTEM FLUSH LOGS")
    cost = client.query(
        "SELECT median(query_duration_ms),"
        " median(ProfileEvents['UserTimeMicroseconds'] + ProfileEvents['SystemTimeMicroseconds']) / 1000,"
        " any(read_rows), any(read_bytes) / 1e6 FROM system.query_log"
        " WHERE type = 'QueryFinish' AND query_id IN ({ids:Array(String)})",
        {"ids": [answer.query_id for answer in answers]},
    ).result_rows[0]
    return dict(zip(COLUMNS[1:], (len(answers[0].result_rows), *cost), strict=True))
