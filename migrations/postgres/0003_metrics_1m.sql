-- Gauges and sums by minute: re-aggregatable parts only, dimensions are joined at read time.
-- A minute without a value has no row.
--
-- Real-time: minutes newer than the last refresh are read from the points.
-- when: timescaledb
CREATE MATERIALIZED VIEW metrics_1m
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    time_bucket(INTERVAL '1 minute', time) AS minute,
    series_id,
    count(value) AS count,
    sum(value) AS sum,
    min(value) AS min,
    max(value) AS max,
    last(value, time) AS last
FROM metrics_points
WHERE value IS NOT NULL
GROUP BY 1, 2
WITH NO DATA;

-- No start: a late point of any age is refreshed.
-- when: timescaledb
SELECT add_continuous_aggregate_policy(
    'metrics_1m', start_offset => NULL, end_offset => INTERVAL '1 minute', schedule_interval => INTERVAL '1 minute'
);

-- unless: timescaledb
CREATE VIEW metrics_1m AS
SELECT
    date_bin(INTERVAL '1 minute', time, TIMESTAMPTZ '2000-01-01 00:00:00+00') AS minute,
    series_id,
    count(value) AS count,
    sum(value) AS sum,
    min(value) AS min,
    max(value) AS max,
    (array_agg(value ORDER BY time DESC))[1] AS last
FROM metrics_points
WHERE value IS NOT NULL
GROUP BY 1, 2;
