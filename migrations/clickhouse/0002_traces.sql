-- Traces. The columns of spans_in are the fields of schemas/span.v1.avsc, in that order.
CREATE TABLE IF NOT EXISTS spans_in
(
    event_id FixedString(16),
    region String,
    received_time Int64,
    tenant String,
    service String,
    host String,
    resource_attributes Map(String, String),
    resource_schema_url String,
    scope_name String,
    scope_version String,
    scope_attributes Map(String, String),
    scope_schema_url String,
    trace_id FixedString(16),
    span_id FixedString(8),
    parent_span_id String,
    trace_state String,
    flags Int64,
    name String,
    kind Int32,
    start_time Int64,
    end_time Int64,
    attributes Map(String, String),
    dropped_attributes_count Int64,
    status_code Int32,
    status_message String,
    events Array(Tuple(
        time Int64, name String, attributes Map(String, String), dropped_attributes_count Int64
    )),
    dropped_events_count Int64,
    links Array(Tuple(
        trace_id String, span_id String, trace_state String, attributes Map(String, String),
        dropped_attributes_count Int64, flags Int64
    )),
    dropped_links_count Int64,
    ordinal Int32
)
ENGINE = Null;

-- Queries through the view traces, measured as in 0001_logs.sql, 3.4 million rows:
--   trace by id                               18 ms,  57,344 rows read (bloom_filter(0.01): 81,921)
--   a service, six hours, over 10 s           10 ms,  16,384
-- A minmax index of the duration made neither fewer; the duration as a column read 0.9 MB instead of 1.0 in the second
-- and took 3.2 bytes a row.
CREATE TABLE IF NOT EXISTS spans
(
    timestamp DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id FixedString(16) CODEC(NONE),
    region LowCardinality(String) CODEC(LZ4),
    received_time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    tenant LowCardinality(String) CODEC(LZ4),
    service LowCardinality(String) CODEC(LZ4),
    host LowCardinality(String) CODEC(LZ4),
    resource_attributes Map(String, String) CODEC(LZ4),
    resource_schema_url LowCardinality(String) CODEC(LZ4),
    scope_name LowCardinality(String) CODEC(LZ4),
    scope_version LowCardinality(String) CODEC(LZ4),
    scope_attributes Map(String, String) CODEC(LZ4),
    scope_schema_url LowCardinality(String) CODEC(LZ4),
    trace_id String CODEC(ZSTD(1)),
    span_id String CODEC(ZSTD(1)),
    parent_span_id String CODEC(ZSTD(1)),
    trace_state String CODEC(ZSTD(1)),
    flags Int64 CODEC(LZ4),
    name LowCardinality(String) CODEC(LZ4),
    kind Int32 CODEC(LZ4),
    start_time Int64 CODEC(Delta, ZSTD(1)),
    end_time Int64 CODEC(Delta, ZSTD(1)),
    attributes Map(String, String) CODEC(LZ4),
    dropped_attributes_count Int64 CODEC(LZ4),
    status_code Int32 CODEC(LZ4),
    status_message String CODEC(ZSTD(1)),
    events Array(Tuple(
        time Int64, name String, attributes Map(String, String), dropped_attributes_count Int64
    )) CODEC(ZSTD(1)),
    dropped_events_count Int64 CODEC(LZ4),
    links Array(Tuple(
        trace_id String, span_id String, trace_state String, attributes Map(String, String),
        dropped_attributes_count Int64, flags Int64
    )) CODEC(ZSTD(1)),
    dropped_links_count Int64 CODEC(LZ4),
    ordinal Int32 CODEC(LZ4),
    INDEX trace_id_bloom trace_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(received_time)
PARTITION BY toDate(timestamp)
PRIMARY KEY (tenant, service, timestamp)
ORDER BY (tenant, service, timestamp, event_id)
SETTINGS non_replicated_deduplication_window = 1000;

-- One row an event of a span: event_id is the span's, event_index the place in its list, from 0.
CREATE TABLE IF NOT EXISTS span_events
(
    timestamp DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id FixedString(16) CODEC(NONE),
    event_index UInt32 CODEC(LZ4),
    region LowCardinality(String) CODEC(LZ4),
    received_time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    tenant LowCardinality(String) CODEC(LZ4),
    service LowCardinality(String) CODEC(LZ4),
    host LowCardinality(String) CODEC(LZ4),
    trace_id String CODEC(ZSTD(1)),
    span_id String CODEC(ZSTD(1)),
    span_name LowCardinality(String) CODEC(LZ4),
    name LowCardinality(String) CODEC(LZ4),
    time Int64 CODEC(Delta, ZSTD(1)),
    attributes Map(String, String) CODEC(LZ4),
    dropped_attributes_count Int64 CODEC(LZ4),
    INDEX trace_id_bloom trace_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(received_time)
PARTITION BY toDate(timestamp)
PRIMARY KEY (tenant, service, timestamp)
ORDER BY (tenant, service, timestamp, event_id, event_index)
SETTINGS non_replicated_deduplication_window = 1000;

-- One row a link of a span, in the same way: trace_id and span_id are the span's, linked_* what it points to.
CREATE TABLE IF NOT EXISTS span_links
(
    timestamp DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id FixedString(16) CODEC(NONE),
    link_index UInt32 CODEC(LZ4),
    region LowCardinality(String) CODEC(LZ4),
    received_time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    tenant LowCardinality(String) CODEC(LZ4),
    service LowCardinality(String) CODEC(LZ4),
    host LowCardinality(String) CODEC(LZ4),
    trace_id String CODEC(ZSTD(1)),
    span_id String CODEC(ZSTD(1)),
    span_name LowCardinality(String) CODEC(LZ4),
    linked_trace_id String CODEC(ZSTD(1)),
    linked_span_id String CODEC(ZSTD(1)),
    trace_state String CODEC(ZSTD(1)),
    attributes Map(String, String) CODEC(LZ4),
    dropped_attributes_count Int64 CODEC(LZ4),
    flags Int64 CODEC(LZ4),
    INDEX trace_id_bloom trace_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX linked_trace_id_bloom linked_trace_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(received_time)
PARTITION BY toDate(timestamp)
PRIMARY KEY (tenant, service, timestamp)
ORDER BY (tenant, service, timestamp, event_id, link_index)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS spans_from_in TO spans AS
SELECT
    fromUnixTimestamp64Nano(
        if(i.start_time BETWEEN 946684800000000000 AND i.receipt + 86400000000000, i.start_time, i.receipt),
        'UTC'
    ) AS timestamp,
    i.event_id AS event_id,
    i.region AS region,
    fromUnixTimestamp64Nano(i.received_time, 'UTC') AS received_time,
    i.tenant AS tenant,
    i.service AS service,
    i.host AS host,
    i.resource_attributes AS resource_attributes,
    i.resource_schema_url AS resource_schema_url,
    i.scope_name AS scope_name,
    i.scope_version AS scope_version,
    i.scope_attributes AS scope_attributes,
    i.scope_schema_url AS scope_schema_url,
    lower(hex(i.trace_id)) AS trace_id,
    lower(hex(i.span_id)) AS span_id,
    lower(hex(i.parent_span_id)) AS parent_span_id,
    i.trace_state AS trace_state,
    i.flags AS flags,
    i.name AS name,
    i.kind AS kind,
    i.start_time AS start_time,
    i.end_time AS end_time,
    i.attributes AS attributes,
    i.dropped_attributes_count AS dropped_attributes_count,
    i.status_code AS status_code,
    i.status_message AS status_message,
    i.events AS events,
    i.dropped_events_count AS dropped_events_count,
    arrayMap(l -> tuple(lower(hex(l.1)), lower(hex(l.2)), l.3, l.4, l.5, l.6), i.links) AS links,
    i.dropped_links_count AS dropped_links_count,
    i.ordinal AS ordinal
FROM (SELECT *, intDiv(received_time, 1000000) * 1000000 AS receipt FROM spans_in) AS i;

-- An event's own time by the same rule, but where it has none the span's stands in before the receipt.
CREATE MATERIALIZED VIEW IF NOT EXISTS span_events_from_in TO span_events AS
SELECT
    fromUnixTimestamp64Nano(
        multiIf(
            e.time BETWEEN 946684800000000000 AND i.receipt + 86400000000000, e.time,
            i.start_time BETWEEN 946684800000000000 AND i.receipt + 86400000000000, i.start_time,
            i.receipt
        ),
        'UTC'
    ) AS timestamp,
    i.event_id AS event_id,
    event_index,
    i.region AS region,
    fromUnixTimestamp64Nano(i.received_time, 'UTC') AS received_time,
    i.tenant AS tenant,
    i.service AS service,
    i.host AS host,
    lower(hex(i.trace_id)) AS trace_id,
    lower(hex(i.span_id)) AS span_id,
    i.name AS span_name,
    e.name AS name,
    e.time AS time,
    e.attributes AS attributes,
    e.dropped_attributes_count AS dropped_attributes_count
FROM (SELECT *, intDiv(received_time, 1000000) * 1000000 AS receipt FROM spans_in) AS i
ARRAY JOIN i.events AS e, arrayMap(n -> toUInt32(n - 1), arrayEnumerate(i.events)) AS event_index;

-- A link has no time of its own.
CREATE MATERIALIZED VIEW IF NOT EXISTS span_links_from_in TO span_links AS
SELECT
    fromUnixTimestamp64Nano(
        if(i.start_time BETWEEN 946684800000000000 AND i.receipt + 86400000000000, i.start_time, i.receipt),
        'UTC'
    ) AS timestamp,
    i.event_id AS event_id,
    link_index,
    i.region AS region,
    fromUnixTimestamp64Nano(i.received_time, 'UTC') AS received_time,
    i.tenant AS tenant,
    i.service AS service,
    i.host AS host,
    lower(hex(i.trace_id)) AS trace_id,
    lower(hex(i.span_id)) AS span_id,
    i.name AS span_name,
    lower(hex(l.trace_id)) AS linked_trace_id,
    lower(hex(l.span_id)) AS linked_span_id,
    l.trace_state AS trace_state,
    l.attributes AS attributes,
    l.dropped_attributes_count AS dropped_attributes_count,
    l.flags AS flags
FROM (SELECT *, intDiv(received_time, 1000000) * 1000000 AS receipt FROM spans_in) AS i
ARRAY JOIN i.links AS l, arrayMap(n -> toUInt32(n - 1), arrayEnumerate(i.links)) AS link_index;

-- Spans as people and Grafana read them; a row a span, never two. The settings are those of the view logs.
CREATE VIEW IF NOT EXISTS traces AS
SELECT
    s.timestamp AS timestamp,
    lower(hex(s.event_id)) AS event_id,
    s.tenant AS tenant,
    s.region AS region,
    s.service AS service,
    s.host AS host,
    s.trace_id AS trace_id,
    s.span_id AS span_id,
    s.parent_span_id AS parent_span_id,
    s.name AS name,
    transform(s.kind, [1, 2, 3, 4, 5], ['internal', 'server', 'client', 'producer', 'consumer'], 'unspecified') AS kind,
    transform(s.status_code, [1, 2], ['ok', 'error'], 'unset') AS status,
    s.status_message AS status_message,
    if(s.start_time > 0 AND s.end_time > s.start_time, s.end_time - s.start_time, 0) AS duration_ns,
    s.start_time AS start_time,
    s.end_time AS end_time,
    s.attributes AS attributes,
    s.resource_attributes AS resource_attributes,
    s.resource_schema_url AS resource_schema_url,
    s.scope_name AS scope_name,
    s.scope_version AS scope_version,
    s.scope_attributes AS scope_attributes,
    s.scope_schema_url AS scope_schema_url,
    s.trace_state AS trace_state,
    s.flags AS flags,
    s.events AS events,
    s.links AS links,
    s.received_time AS received_time,
    s.dropped_attributes_count AS dropped_attributes_count,
    s.dropped_events_count AS dropped_events_count,
    s.dropped_links_count AS dropped_links_count
FROM spans AS s FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0;

-- Events and links of spans, each once.
CREATE VIEW IF NOT EXISTS trace_events AS
SELECT * REPLACE (lower(hex(event_id)) AS event_id) FROM span_events FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0;

CREATE VIEW IF NOT EXISTS trace_links AS
SELECT * REPLACE (lower(hex(event_id)) AS event_id) FROM span_links FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0;
