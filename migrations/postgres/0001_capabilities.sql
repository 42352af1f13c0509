-- Optional extensions are switched on where the server has them; later files ask by the same words.
-- when: timescaledb
CREATE EXTENSION IF NOT EXISTS timescaledb;

-- What create_hypertable is there: an empty table becomes one of range partitions by `time_column`. What has no partition
-- of its own goes into <name>_default, so that every time is taken; `pipeline maintain` makes and drops the others.
-- unless: timescaledb
CREATE FUNCTION create_partitioned(name regclass, time_column name) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    key text := (SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = name AND contype = 'p');
    called text := name::text;
BEGIN
    EXECUTE format('ALTER TABLE %I RENAME TO %I', called, called || '_columns');
    EXECUTE format('CREATE TABLE %I (LIKE %I) PARTITION BY RANGE (%I)', called, called || '_columns', time_column);
    EXECUTE format('DROP TABLE %I', called || '_columns');
    EXECUTE format('ALTER TABLE %I ADD %s', called, key);
    EXECUTE format('CREATE TABLE %I PARTITION OF %I DEFAULT', called || '_default', called);
END
$$;
