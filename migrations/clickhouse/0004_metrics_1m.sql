-- Gauges and sums by minute. Whole minutes are recomputed from deduplicated points and the latest computation of a
-- minute replaces the older ones, so neither a redelivery nor a late point is ever counted twice.
CREATE TABLE IF NOT EXISTS metrics_1m_computed
(
    minute DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    series_id Int64 CODEC(ZSTD(1)),
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    metric_name LowCardinality(String) CODEC(ZSTD(1)),
    service LowCardinality(String) CODEC(ZSTD(1)),
    count UInt64 CODEC(ZSTD(1)),
    sum Float64 CODEC(ZSTD(1)),
    min Float64 CODEC(ZSTD(1)),
    max Float64 CODEC(ZSTD(1)),
    last Float64 CODEC(ZSTD(1)),
    computed_time DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(computed_time)
PARTITION BY toDate(minute)
ORDER BY (tenant, metric_name, service, series_id, minute);

-- Every 10 seconds: the minutes of the points that came in since the last computation, 30 seconds before it included
-- because an insert is seen a moment after its inserted_time. Two points of one series and time: the later receipt
-- counts, as in PostgreSQL. An empty metrics_1m_computed is filled from all points.
CREATE MATERIALIZED VIEW IF NOT EXISTS metrics_1m_refresh
REFRESH EVERY 10 SECOND APPEND TO metrics_1m_computed AS
WITH touched AS
(
    SELECT DISTINCT p.series_id AS series_id, toStartOfMinute(toDateTime(p.timestamp, 'UTC')) AS minute
    FROM metrics_points AS p
    WHERE p.value IS NOT NULL
        AND p.inserted_time >= (SELECT max(computed_time) FROM metrics_1m_computed) - INTERVAL 30 SECOND
)
SELECT
    s.minute AS minute,
    s.series_id AS series_id,
    s.tenant AS tenant,
    s.metric_name AS metric_name,
    s.service AS service,
    count() AS count,
    sum(s.point) AS sum,
    min(s.point) AS min,
    max(s.point) AS max,
    argMax(s.point, s.timestamp) AS last,
    now64(3, 'UTC') AS computed_time
FROM
(
    SELECT
        p.tenant AS tenant,
        p.metric_name AS metric_name,
        p.service AS service,
        p.series_id AS series_id,
        p.timestamp AS timestamp,
        toStartOfMinute(toDateTime(p.timestamp, 'UTC')) AS minute,
        argMax(assumeNotNull(p.value), (p.received_time, p.event_id)) AS point
    FROM metrics_points AS p
    WHERE p.value IS NOT NULL
        AND p.timestamp >= (SELECT minOrNull(minute) FROM touched)
        AND (p.series_id, toStartOfMinute(toDateTime(p.timestamp, 'UTC'))) IN (SELECT series_id, minute FROM touched)
    GROUP BY p.tenant, p.metric_name, p.service, p.series_id, p.timestamp
) AS s
GROUP BY s.tenant, s.metric_name, s.service, s.series_id, s.minute;

CREATE VIEW IF NOT EXISTS metrics_1m AS
SELECT c.minute, c.series_id, c.tenant, c.metric_name, c.service, c.count, c.sum, c.min, c.max, c.last
FROM metrics_1m_computed AS c FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;
