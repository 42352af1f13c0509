-- `pipeline maintain` sets TTL. A part is dropped when all of its rows, which are of one day, have expired: nothing is
-- rewritten. When a TTL changes, old parts learn of it without being rewritten either.
ALTER TABLE logs_events MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;

ALTER TABLE spans MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;

ALTER TABLE span_events MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;

ALTER TABLE span_links MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;

ALTER TABLE metrics_points MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;

ALTER TABLE metrics_1m_computed MODIFY SETTING ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1;
