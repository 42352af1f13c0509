-- How many lines of each pattern came in each minute, of logs that went through the agent log_patterns.
CREATE VIEW IF NOT EXISTS log_patterns AS
SELECT
    toStartOfMinute(timestamp) AS minute,
    tenant,
    service,
    attributes['log.pattern_id'] AS pattern_id,
    any(attributes['log.pattern']) AS pattern,
    max(severity_number) AS severity_number,
    count() AS lines
FROM logs
WHERE attributes['log.pattern_id'] != ''
GROUP BY minute, tenant, service, pattern_id;
