-- Error logs (severity 17 and more) and OTLP events (log records with an event_name), for a short time; ClickHouse
-- keeps all logs. Names are those of its view `logs`. One key, by time first, serves readers and finds what comes again;
-- event_id takes its printed form, 32 hex digits, and trace_id and span_id are kept in it.
CREATE TABLE events (
    time timestamptz NOT NULL,
    event_id uuid NOT NULL,
    tenant text NOT NULL,
    region text NOT NULL,
    service text NOT NULL,
    host text NOT NULL,
    severity_number integer NOT NULL,
    severity_text text NOT NULL,
    event_name text NOT NULL,
    body text NOT NULL,
    attributes jsonb NOT NULL,
    resource_attributes jsonb NOT NULL,
    trace_id text NOT NULL,
    span_id text NOT NULL,
    received_time timestamptz NOT NULL,
    PRIMARY KEY (time, event_id)
);

-- when: timescaledb
SELECT create_hypertable('events', by_range('time', INTERVAL '1 day'), create_default_indexes => false);

-- unless: timescaledb
SELECT create_partitioned('events', 'time');
