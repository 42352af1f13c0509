-- A day of metrics_1d has 24 hours, whatever the reader's time zone: where clocks change that night '1 day' has 23 or 25,
-- so that an hour was of no day, or of two.
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
JOIN metrics_1h AS h ON h.hour >= c.day AND h.hour < c.day + INTERVAL '24 hours'
GROUP BY 1, 2;
