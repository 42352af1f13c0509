-- metrics_1m takes points whose insert was slow, and leaves minutes alone of which metrics_points has lost points.
--
-- An insert is seen when it ends, its inserted_time is when it began. So each refresh notes when the oldest insert began
-- that ran then; a refresh is an insert too. A table of its own, because metrics_1m_computed is too large to be asked
-- for its latest every ten seconds.
CREATE TABLE IF NOT EXISTS metrics_1m_refreshes
(
    computed_time DateTime64(3, 'UTC'),
    running_since DateTime64(3, 'UTC')
)
ENGINE = MergeTree
ORDER BY computed_time;

CREATE MATERIALIZED VIEW IF NOT EXISTS metrics_1m_refreshes_from_computed TO metrics_1m_refreshes AS
SELECT DISTINCT
    computed_time,
    (
        SELECT now64(3, 'UTC') - toIntervalMillisecond(ceil(1000 * max(elapsed)))
        FROM system.processes WHERE query_kind = 'Insert'
    ) AS running_since
FROM metrics_1m_computed;

-- The minutes of points that the refresh before the last one may not have seen: the last one read what was running a
-- moment after it read the points. However long an insert took and however old its points are, the refresh after its
-- end computes their minutes.
--
-- But a minute of which the TTL of metrics_points may have removed points stays what it was: what comes late for it is
-- not all that there was. The longest interval of the TTL is that of its removal.
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
        WHERE p.value IS NOT NULL AND p.inserted_time >= seen_until
            AND (kept_days = 0 OR minute > now() - toIntervalDay(kept_days) + INTERVAL 1 MINUTE)
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
