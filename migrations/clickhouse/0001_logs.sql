-- Logs. Writers insert Avro container files into logs_in; its columns are the fields of schemas/log_record.v1.avsc,
-- in that order, so no value is converted on the way in. The view converts, logs_events keeps, logs is read.
CREATE TABLE IF NOT EXISTS logs_in
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
    time Int64,
    observed_time Int64,
    severity_number Int32,
    severity_text String,
    event_name String,
    body String,
    attributes Map(String, String),
    dropped_attributes_count Int64,
    trace_id String,
    span_id String,
    flags Int64,
    ordinal Int32
)
ENGINE = Null;

-- A redelivered record has the same timestamp and event_id, so it falls on its twin: one partition, one key. So does
-- another form of it, which an agent made: agents change none of the columns of the key, and a form is received the
-- later, in microseconds, the more agents and the newer versions of them it has been through. The newest form stays.
-- The deduplication window is for an insert that is retried with its token.
--
-- Codecs, measured on a busy 2-core machine, CPU of the server, the bench's log records, 50,000 an insert, two runs:
--                                 insert        merge, a merged row   bytes a row
--   ZSTD(1) everywhere            6.2 us        3.2, 4.2 us           85
--   as below                      5.4, 6.1 us   1.9, 1.9 us           91
-- Of an insert, reading Avro is 2.5 us, the index and the sorting about 0.3 each (within twice the noise).
-- Parts stay compact up to 128 MB: wide ones from 10 MB on, which an insert is already, cost it 0.3 to 0.9 us more. With
-- base 8 instead of 5 a row is merged 1.0 times instead of 1.7 (3 million rows, 2.5 instead of 3.9 us), with 8 parts
-- left instead of 6.
--
-- Queries through the view logs (`python -m tests.bench queries`: 6.6 million rows of 20 services and five days, twins
-- among them), CPU of the server, medians of five, and in brackets without the index, same rows in 26 parts:
--   trace by id                        38 ms,    86,902 rows read   (1,304 ms, 6,000,141)
--   errors by service, a day           89 ms, 1,355,648: the day, also with a minmax index of severity_number, and with
--                                      severity_number >= 17 before the timestamp in the key
--   the last errors of a service       38 ms,   442,368: the service
-- Other indexes for the trace, rows read and bytes a row: bloom_filter(0.001) 57,345 and 1.2, 0.01 81,921 and 0.8,
-- tokenbf_v1 of 32 KB 114,688 and 3.8.
CREATE TABLE IF NOT EXISTS logs_events
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
    time Int64 CODEC(Delta, ZSTD(1)),
    observed_time Int64 CODEC(Delta, ZSTD(1)),
    severity_number Int32 CODEC(LZ4),
    severity_text LowCardinality(String) CODEC(LZ4),
    event_name LowCardinality(String) CODEC(LZ4),
    body String CODEC(ZSTD(1)),
    attributes Map(String, String) CODEC(LZ4),
    dropped_attributes_count Int64 CODEC(LZ4),
    trace_id String CODEC(ZSTD(1)),
    span_id String CODEC(ZSTD(1)),
    flags Int64 CODEC(LZ4),
    ordinal Int32 CODEC(LZ4),
    INDEX trace_id_bloom trace_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(received_time)
PARTITION BY toDate(timestamp)
PRIMARY KEY (tenant, service, timestamp)
ORDER BY (tenant, service, timestamp, event_id)
SETTINGS non_replicated_deduplication_window = 1000, min_bytes_for_wide_part = 134217728, merge_selector_base = 8;

-- The timestamp is time, else observed_time; where neither is there or it is absurd (before 2000, or more than a day
-- after receipt), the receipt time: of any form, without its microseconds. Times past 2262 arrive as negative numbers.
CREATE MATERIALIZED VIEW IF NOT EXISTS logs_events_from_in TO logs_events AS
SELECT
    fromUnixTimestamp64Nano(
        if(sent BETWEEN 946684800000000000 AND i.receipt + 86400000000000, sent, i.receipt), 'UTC'
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
    i.time AS time,
    i.observed_time AS observed_time,
    i.severity_number AS severity_number,
    i.severity_text AS severity_text,
    i.event_name AS event_name,
    i.body AS body,
    i.attributes AS attributes,
    i.dropped_attributes_count AS dropped_attributes_count,
    lower(hex(i.trace_id)) AS trace_id,
    lower(hex(i.span_id)) AS span_id,
    i.flags AS flags,
    i.ordinal AS ordinal
FROM (
    SELECT *, if(time != 0, time, observed_time) AS sent, intDiv(received_time, 1000000) * 1000000 AS receipt FROM logs_in
) AS i;

-- What people and Grafana read. FINAL looks for twins inside one partition only: twins never lie in two.
-- Exact mode would add, to what an index selects, all of the other parts that twins may be in. All forms of a record
-- have the trace_id of the first (an agent that changes it makes another event), so its index selects them all. The body
-- is what agents change: by an index of it a query would find an old form and not the newer one that replaces it, so
-- there is none. CPU of the server, 2.4 million rows of five days:
--                                        with tokenbf_v1 of the body   exact mode   as here
--   trace by id                          35 ms                         483 ms       43 ms
--   all services, a day, a rare word     19 ms                          98 ms      147 ms
--   a service, a day, a rare word        11 ms                          10 ms       48 ms
CREATE VIEW IF NOT EXISTS logs AS
SELECT
    e.timestamp AS timestamp,
    lower(hex(e.event_id)) AS event_id,
    e.tenant AS tenant,
    e.region AS region,
    e.service AS service,
    e.host AS host,
    e.severity_number AS severity_number,
    e.severity_text AS severity_text,
    e.event_name AS event_name,
    e.body AS body,
    e.attributes AS attributes,
    e.resource_attributes AS resource_attributes,
    e.resource_schema_url AS resource_schema_url,
    e.scope_name AS scope_name,
    e.scope_version AS scope_version,
    e.scope_attributes AS scope_attributes,
    e.scope_schema_url AS scope_schema_url,
    e.trace_id AS trace_id,
    e.span_id AS span_id,
    e.flags AS flags,
    e.time AS time,
    e.observed_time AS observed_time,
    e.received_time AS received_time,
    e.dropped_attributes_count AS dropped_attributes_count
FROM logs_events AS e FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1, use_skip_indexes_if_final_exact_mode = 0;
