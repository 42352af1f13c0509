-- A point that says that nothing was recorded supersedes as any other does, as in PostgreSQL: a minute that has no value
-- any more is computed once more, with a count of 0, and not shown. Points of other types have no value either, and are
-- not looked at. (argMax passes over a null, and not over a tuple of one.)
ALTER TABLE metrics_1m_refresh MODIFY QUERY
WITH
    (
        SELECT max(running_since) FROM metrics_1m_refreshes
        WHERE computed_time < (SELECT max(computed_time) FROM metrics_1m_refreshes)
    ) AS seen_until,
    (
        SELECT arrayMax(arrayMap(n -> toUInt32(n), extractAll(engine_full, 'toIntervalDay\\((\\d+)\\)')))
        FROM system.tables WHERE database = currentDatabase() AND name = 'metrics_points'
    ) AS kept_days,
    touched AS
    (
        SELECT DISTINCT p.series_id AS series_id, toStartOfMinute(toDateTime(p.timestamp, 'UTC')) AS minute
        FROM metrics_points AS p
        WHERE p.type NOT IN ('histogram', 'exponential_histogram', 'summary') AND p.inserted_time >= seen_until
            AND (kept_days = 0 OR minute > now() - toIntervalDay(kept_days) + INTERVAL 1 MINUTE)
    )
SELECT
    s.minute AS minute,
    s.series_id AS series_id,
    s.tenant AS tenant,
    s.metric_name AS metric_name,
    s.service AS service,
    count(s.point) AS count,
    ifNull(sum(s.point), 0) AS sum,
    ifNull(min(s.point), 0) AS min,
    ifNull(max(s.point), 0) AS max,
    ifNull(argMax(s.point, s.timestamp), 0) AS last,
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
        argMax(tuple(p.value), (p.received_time, p.event_id)).1 AS point
    FROM metrics_points AS p
    WHERE p.type NOT IN ('histogram', 'exponential_histogram', 'summary')
        AND p.timestamp >= (SELECT minOrNull(minute) FROM touched)
        AND (p.series_id, toStartOfMinute(toDateTime(p.timestamp, 'UTC'))) IN (SELECT series_id, minute FROM touched)
    GROUP BY p.tenant, p.metric_name, p.service, p.series_id, p.timestamp
) AS s
GROUP BY s.tenant, s.metric_name, s.service, s.series_id, s.minute;

CREATE OR REPLACE VIEW metrics_1m AS
SELECT c.minute, c.series_id, c.tenant, c.metric_name, c.service, c.count, c.sum, c.min, c.max, c.last
FROM metrics_1m_computed AS c FINAL
WHERE c.count > 0
SETTINGS do_not_merge_across_partitions_select_final = 1;
