-- Gauges and sums by minute, hour and day: re-aggregatable parts only, dimensions are joined at read time. Each is made
-- of the finer one. A time without a value has no row.
--
-- Real-time: what is newer than the last refresh is read from the finer one.
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

-- when: timescaledb
CREATE MATERIALIZED VIEW metrics_1h
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    time_bucket(INTERVAL '1 hour', minute) AS hour,
    series_id,
    sum(count)::bigint AS count,
    sum(sum) AS sum,
    min(min) AS min,
    max(max) AS max,
    last(last, minute) AS last
FROM metrics_1m
GROUP BY 1, 2
WITH NO DATA;

-- when: timescaledb
CREATE MATERIALIZED VIEW metrics_1d
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    time_bucket(INTERVAL '1 day', hour) AS day,
    series_id,
    sum(count)::bigint AS count,
    sum(sum) AS sum,
    min(min) AS min,
    max(max) AS max,
    last(last, hour) AS last
FROM metrics_1h
GROUP BY 1, 2
WITH NO DATA;

-- No start: a late point of any age is refreshed. `pipeline maintain` sets it to what retention keeps: of what is gone
-- a refresh would make nothing.
-- when: timescaledb
SELECT
    add_continuous_aggregate_policy(
        'metrics_1m', start_offset => NULL, end_offset => INTERVAL '1 minute', schedule_interval => INTERVAL '1 minute'
    ),
    add_continuous_aggregate_policy(
        'metrics_1h', start_offset => NULL, end_offset => INTERVAL '1 hour', schedule_interval => INTERVAL '10 minutes'
    ),
    add_continuous_aggregate_policy(
        'metrics_1d', start_offset => NULL, end_offset => INTERVAL '1 day', schedule_interval => INTERVAL '1 hour'
    );

-- Without TimescaleDB: whoever changes points says of which hours, in the same transaction. Readers see rollups of the
-- hours that are not among the changed ones, and all others as their points are now, so that every reader sees what the
-- points of his snapshot add up to, whenever and however often somebody refreshes.
--
-- No key: a writer must neither wait for another one nor rely on a row that a refresh is about to delete.
-- unless: timescaledb
CREATE TABLE metrics_changed_hours (hour timestamptz NOT NULL);

-- Points before this time may be gone, and rollups of them are final.
-- unless: timescaledb
CREATE TABLE metrics_points_kept (since timestamptz NOT NULL);

-- unless: timescaledb
INSERT INTO metrics_points_kept VALUES ('-infinity');

-- Called after points have changed; `hours` since 2000. TimescaleDB sees by itself what changes.
-- when: timescaledb
CREATE FUNCTION metrics_points_changed(hours bigint[]) RETURNS void LANGUAGE sql AS '';

-- unless: timescaledb
CREATE FUNCTION metrics_points_changed(hours bigint[]) RETURNS void LANGUAGE sql AS $$
INSERT INTO metrics_changed_hours
SELECT hour
FROM metrics_points_kept
CROSS JOIN LATERAL (SELECT TIMESTAMPTZ '2000-01-01 00:00:00+00' + n * INTERVAL '1 hour' FROM unnest(hours) AS n) AS h (hour)
WHERE hour >= since
$$;

-- unless: timescaledb
CREATE TABLE metrics_1m_rollup (
    minute timestamptz NOT NULL,
    series_id bigint NOT NULL,
    count bigint NOT NULL,
    sum double precision NOT NULL,
    min double precision NOT NULL,
    max double precision NOT NULL,
    last double precision NOT NULL,
    PRIMARY KEY (series_id, minute)
);

-- unless: timescaledb
CREATE TABLE metrics_1h_rollup (
    hour timestamptz NOT NULL,
    series_id bigint NOT NULL,
    count bigint NOT NULL,
    sum double precision NOT NULL,
    min double precision NOT NULL,
    max double precision NOT NULL,
    last double precision NOT NULL,
    PRIMARY KEY (series_id, hour)
);

-- unless: timescaledb
CREATE TABLE metrics_1d_rollup (
    day timestamptz NOT NULL,
    series_id bigint NOT NULL,
    count bigint NOT NULL,
    sum double precision NOT NULL,
    min double precision NOT NULL,
    max double precision NOT NULL,
    last double precision NOT NULL,
    PRIMARY KEY (series_id, day)
);

-- unless: timescaledb
SELECT
    create_partitioned('metrics_1m_rollup', 'minute'),
    create_partitioned('metrics_1h_rollup', 'hour'),
    create_partitioned('metrics_1d_rollup', 'day');

-- unless: timescaledb
CREATE FUNCTION metrics_minutes(of_hour timestamptz) RETURNS SETOF metrics_1m_rollup
LANGUAGE sql STABLE PARALLEL SAFE AS $$
SELECT
    date_bin(INTERVAL '1 minute', time, TIMESTAMPTZ '2000-01-01 00:00:00+00') AS minute,
    series_id,
    count(value),
    sum(value),
    min(value),
    max(value),
    (array_agg(value ORDER BY time DESC))[1]
FROM metrics_points
WHERE time >= of_hour AND time < of_hour + INTERVAL '1 hour' AND value IS NOT NULL
GROUP BY 1, 2
$$;

-- unless: timescaledb
CREATE VIEW metrics_1m AS
SELECT * FROM metrics_1m_rollup AS r
WHERE NOT EXISTS (
    SELECT FROM metrics_changed_hours AS c
    WHERE c.hour = date_bin(INTERVAL '1 hour', r.minute, TIMESTAMPTZ '2000-01-01 00:00:00+00')
)
UNION ALL
SELECT m.* FROM (SELECT DISTINCT hour FROM metrics_changed_hours) AS c CROSS JOIN LATERAL metrics_minutes(c.hour) AS m;

-- unless: timescaledb
CREATE VIEW metrics_1h AS
SELECT * FROM metrics_1h_rollup AS r
WHERE NOT EXISTS (SELECT FROM metrics_changed_hours AS c WHERE c.hour = r.hour)
UNION ALL
SELECT
    c.hour,
    m.series_id,
    sum(m.count)::bigint,
    sum(m.sum),
    min(m.min),
    max(m.max),
    (array_agg(m.last ORDER BY m.minute DESC))[1]
FROM (SELECT DISTINCT hour FROM metrics_changed_hours) AS c
CROSS JOIN LATERAL metrics_minutes(c.hour) AS m
GROUP BY 1, 2;

-- unless: timescaledb
CREATE VIEW metrics_1d AS
WITH changed AS (
    SELECT DISTINCT date_bin(INTERVAL '1 day', hour, TIMESTAMPTZ '2000-01-01 00:00:00+00') AS day
    FROM metrics_changed_hours
)
SELECT * FROM metrics_1d_rollup AS r
WHERE NOT EXISTS (SELECT FROM changed AS c WHERE c.day = r.day)
UNION ALL
SELECT
    c.day,
    h.series_id,
    sum(h.count)::bigint,
    sum(h.sum),
    min(h.min),
    max(h.max),
    (array_agg(h.last ORDER BY h.hour DESC))[1]
FROM changed AS c
JOIN metrics_1h AS h ON h.hour >= c.day AND h.hour < c.day + INTERVAL '1 day'
GROUP BY 1, 2;

-- Rollups of the changed hours of a day (UTC) that are before `ended`, and of the day. What others commit meanwhile stays
-- among the changed hours.
-- unless: timescaledb
CREATE PROCEDURE refresh_metrics_rollups(of_day timestamptz, ended timestamptz) LANGUAGE plpgsql AS $$
DECLARE
    next_day CONSTANT timestamptz := of_day + INTERVAL '24 hours';
    one timestamptz;
    hours timestamptz[];
BEGIN
    WITH taken AS (
        DELETE FROM metrics_changed_hours WHERE hour >= of_day AND hour < least(next_day, ended) RETURNING hour
    )
    SELECT array_agg(DISTINCT hour) INTO hours FROM taken;
    FOREACH one IN ARRAY coalesce(hours, '{}') LOOP
        DELETE FROM metrics_1m_rollup WHERE minute >= one AND minute < one + INTERVAL '1 hour';
        INSERT INTO metrics_1m_rollup SELECT * FROM metrics_minutes(one);
    END LOOP;
    DELETE FROM metrics_1h_rollup WHERE hour = ANY (hours);
    INSERT INTO metrics_1h_rollup
    SELECT
        date_bin(INTERVAL '1 hour', minute, of_day), series_id, sum(count), sum(sum), min(min), max(max),
        (array_agg(last ORDER BY minute DESC))[1]
    FROM metrics_1m_rollup
    WHERE minute >= of_day AND minute < next_day AND date_bin(INTERVAL '1 hour', minute, of_day) = ANY (hours)
    GROUP BY 1, 2;
    DELETE FROM metrics_1d_rollup WHERE day = of_day;
    INSERT INTO metrics_1d_rollup
    SELECT of_day, series_id, sum(count), sum(sum), min(min), max(max), (array_agg(last ORDER BY hour DESC))[1]
    FROM metrics_1h_rollup
    WHERE hour >= of_day AND hour < next_day
    GROUP BY 2;
END
$$;
