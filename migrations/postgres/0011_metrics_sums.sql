-- Sums that never fail: where no double holds the sum it is Infinity, as in ClickHouse. PostgreSQL's own sum() raises
-- an error there, so that two large points of one minute would stop every reader of rollups and every refresh.
--
-- Values from 1e270 on are added up apart, as 2^-64 of themselves, which is exact and leaves room for 10^18 of them. As
-- many others come to less than half of the last digit of the largest double, so the sum is Infinity where it is too
-- large and only there.
CREATE FUNCTION saturated_sum(small double precision, large double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT CASE
    WHEN abs(large) < power(2::double precision, 960) THEN large * power(2::double precision, 64) + coalesce(small, 0)
    ELSE coalesce(large * 'Infinity', small)
END
$$;

-- unless: timescaledb
CREATE OR REPLACE FUNCTION metrics_minutes(of_hour timestamptz) RETURNS SETOF metrics_1m_rollup
LANGUAGE sql STABLE PARALLEL SAFE AS $$
SELECT
    date_bin(INTERVAL '1 minute', time, TIMESTAMPTZ '2000-01-01 00:00:00+00') AS minute,
    series_id,
    count(value),
    saturated_sum(
        sum(value) FILTER (WHERE abs(value) < 1e270),
        sum(value / 18446744073709551616) FILTER (WHERE abs(value) >= 1e270)
    ),
    min(value),
    max(value),
    (array_agg(value ORDER BY time DESC))[1]
FROM metrics_points
WHERE time >= of_hour AND time < of_hour + INTERVAL '1 hour' AND value IS NOT NULL
GROUP BY 1, 2
$$;

-- unless: timescaledb
CREATE OR REPLACE VIEW metrics_1h AS
SELECT * FROM metrics_1h_rollup AS r
WHERE NOT EXISTS (SELECT FROM metrics_changed_hours AS c WHERE c.hour = r.hour)
UNION ALL
SELECT
    c.hour,
    m.series_id,
    sum(m.count)::bigint,
    saturated_sum(
        sum(m.sum) FILTER (WHERE abs(m.sum) < 1e270),
        sum(m.sum / 18446744073709551616) FILTER (WHERE abs(m.sum) >= 1e270)
    ),
    min(m.min),
    max(m.max),
    (array_agg(m.last ORDER BY m.minute DESC))[1]
FROM (SELECT DISTINCT hour FROM metrics_changed_hours) AS c
CROSS JOIN LATERAL metrics_minutes(c.hour) AS m
GROUP BY 1, 2;

-- unless: timescaledb
CREATE OR REPLACE VIEW metrics_1d AS
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
    saturated_sum(
        sum(h.sum) FILTER (WHERE abs(h.sum) < 1e270),
        sum(h.sum / 18446744073709551616) FILTER (WHERE abs(h.sum) >= 1e270)
    ),
    min(h.min),
    max(h.max),
    (array_agg(h.last ORDER BY h.hour DESC))[1]
FROM changed AS c
JOIN metrics_1h AS h ON h.hour >= c.day AND h.hour < c.day + INTERVAL '1 day'
GROUP BY 1, 2;

-- unless: timescaledb
CREATE OR REPLACE PROCEDURE refresh_metrics_rollups(of_day timestamptz, ended timestamptz) LANGUAGE plpgsql AS $$
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
        date_bin(INTERVAL '1 hour', minute, of_day), series_id, sum(count),
        saturated_sum(
            sum(sum) FILTER (WHERE abs(sum) < 1e270), sum(sum / 18446744073709551616) FILTER (WHERE abs(sum) >= 1e270)
        ),
        min(min), max(max), (array_agg(last ORDER BY minute DESC))[1]
    FROM metrics_1m_rollup
    WHERE minute >= of_day AND minute < next_day AND date_bin(INTERVAL '1 hour', minute, of_day) = ANY (hours)
    GROUP BY 1, 2;
    DELETE FROM metrics_1d_rollup WHERE day = of_day;
    INSERT INTO metrics_1d_rollup
    SELECT
        of_day, series_id, sum(count),
        saturated_sum(
            sum(sum) FILTER (WHERE abs(sum) < 1e270), sum(sum / 18446744073709551616) FILTER (WHERE abs(sum) >= 1e270)
        ),
        min(min), max(max), (array_agg(last ORDER BY hour DESC))[1]
    FROM metrics_1h_rollup
    WHERE hour >= of_day AND hour < next_day
    GROUP BY 2;
END
$$;

-- A continuous aggregate cannot be changed, so each is made anew and takes over the rows of the one before it: those of
-- points that are gone can be made from nothing else.
-- when: timescaledb
ALTER MATERIALIZED VIEW metrics_1m RENAME TO metrics_1m_before;

-- when: timescaledb
ALTER MATERIALIZED VIEW metrics_1h RENAME TO metrics_1h_before;

-- when: timescaledb
ALTER MATERIALIZED VIEW metrics_1d RENAME TO metrics_1d_before;

-- when: timescaledb
CREATE MATERIALIZED VIEW metrics_1m
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    time_bucket(INTERVAL '1 minute', time) AS minute,
    series_id,
    count(value) AS count,
    saturated_sum(
        sum(value) FILTER (WHERE abs(value) < 1e270),
        sum(value / 18446744073709551616) FILTER (WHERE abs(value) >= 1e270)
    ) AS sum,
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
    saturated_sum(
        sum(sum) FILTER (WHERE abs(sum) < 1e270), sum(sum / 18446744073709551616) FILTER (WHERE abs(sum) >= 1e270)
    ) AS sum,
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
    saturated_sum(
        sum(sum) FILTER (WHERE abs(sum) < 1e270), sum(sum / 18446744073709551616) FILTER (WHERE abs(sum) >= 1e270)
    ) AS sum,
    min(min) AS min,
    max(max) AS max,
    last(last, hour) AS last
FROM metrics_1h
GROUP BY 1, 2
WITH NO DATA;

-- when: timescaledb
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT
            format('%I.%I', a.materialization_hypertable_schema, a.materialization_hypertable_name) AS rows,
            format('%I.%I', b.materialization_hypertable_schema, b.materialization_hypertable_name) AS rows_before
        FROM timescaledb_information.continuous_aggregates AS a
        JOIN timescaledb_information.continuous_aggregates AS b
            ON b.view_schema = a.view_schema AND b.view_name = a.view_name || '_before'
        WHERE a.view_schema = current_schema()
    LOOP
        EXECUTE format('INSERT INTO %s SELECT * FROM %s', made.rows, made.rows_before);
    END LOOP;
END
$$;

-- Which rows an aggregate has it learns from a refresh that makes one. So one is made of a point of the year 2000, of a
-- series that nobody sees, and taken away again. Each must have learned it before the next is refreshed, which would
-- else lose hours whose minutes are not seen.
-- when: timescaledb
-- transaction: none
DO $$
DECLARE
    long_ago CONSTANT timestamptz := '2000-01-01 00:00:00+00';
BEGIN
    IF NOT EXISTS (SELECT FROM metrics_1m_before) AND NOT EXISTS (SELECT FROM metrics_1d_before) THEN
        RETURN;
    END IF;
    INSERT INTO metrics_points VALUES (long_ago, 0, gen_random_uuid(), '', long_ago, 0) ON CONFLICT DO NOTHING;
    FOR turn IN 1..2 LOOP
        CALL refresh_continuous_aggregate('metrics_1m', long_ago, long_ago + INTERVAL '1 minute');
        CALL refresh_continuous_aggregate('metrics_1h', long_ago, long_ago + INTERVAL '1 hour');
        CALL refresh_continuous_aggregate('metrics_1d', long_ago, long_ago + INTERVAL '1 day');
        DELETE FROM metrics_points WHERE time = long_ago AND series_id = 0;
    END LOOP;
END
$$;

-- Refreshed and kept as those before: `pipeline maintain` may have said how far back.
-- when: timescaledb
DO $$
DECLARE
    job record;
    made integer;
BEGIN
    FOR job IN
        SELECT left(c.view_name, -length('_before')) AS name, j.proc_name, j.schedule_interval, j.config
        FROM timescaledb_information.jobs AS j
        JOIN timescaledb_information.continuous_aggregates AS c
            ON j.hypertable_name IN (c.view_name, c.materialization_hypertable_name)
        WHERE c.view_schema = current_schema() AND c.view_name LIKE 'metrics\_1_\_before'
        ORDER BY j.job_id
    LOOP
        IF job.proc_name = 'policy_refresh_continuous_aggregate' THEN
            made := add_continuous_aggregate_policy(
                job.name::regclass, start_offset => (job.config ->> 'start_offset')::interval,
                end_offset => (job.config ->> 'end_offset')::interval, schedule_interval => job.schedule_interval
            );
            PERFORM alter_job(job_id, config => config || '{"buckets_per_batch": 0}')
            FROM timescaledb_information.jobs WHERE job_id = made;
        ELSIF job.proc_name = 'policy_retention' THEN
            PERFORM add_retention_policy(job.name::regclass, (job.config ->> 'drop_after')::interval);
        END IF;
    END LOOP;
END
$$;

-- when: timescaledb
DROP MATERIALIZED VIEW metrics_1d_before;

-- when: timescaledb
DROP MATERIALIZED VIEW metrics_1h_before;

-- when: timescaledb
DROP MATERIALIZED VIEW metrics_1m_before;
