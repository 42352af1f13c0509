-- A series is what all its points have in common; series_id is a hash of tenant, metric name and labels.
CREATE TABLE metric_series (
    series_id bigint PRIMARY KEY,
    tenant text NOT NULL,
    metric_name text NOT NULL,
    service text NOT NULL,
    host text NOT NULL,
    description text NOT NULL,
    unit text NOT NULL,
    type text NOT NULL,
    temporality text NOT NULL,
    monotonic boolean NOT NULL,
    labels jsonb NOT NULL,
    created_time timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX metric_series_by_name ON metric_series (metric_name, service);

CREATE INDEX metric_series_by_label ON metric_series USING gin (labels jsonb_path_ops);

-- The hot tables have one key, in that order, no second index and no foreign key: each would cost a third of the
-- speed or more. Writers insert the series first, in the same transaction.
--
-- Gauges and sums; value is null where the client said that none was recorded.
CREATE TABLE metrics_points (
    time timestamptz NOT NULL,
    series_id bigint NOT NULL,
    event_id uuid NOT NULL,
    region text NOT NULL,
    received_time timestamptz NOT NULL,
    value double precision,
    PRIMARY KEY (series_id, time)
);

-- when: timescaledb
SELECT create_hypertable('metrics_points', by_range('time', INTERVAL '1 day'), create_default_indexes => false);

-- unless: timescaledb
SELECT create_partitioned('metrics_points', 'time');

-- bucket_counts has one number more than explicit_bounds: the last bucket is open.
CREATE TABLE metrics_histograms (
    time timestamptz NOT NULL,
    series_id bigint NOT NULL,
    event_id uuid NOT NULL,
    region text NOT NULL,
    received_time timestamptz NOT NULL,
    count bigint NOT NULL,
    sum double precision,
    min double precision,
    max double precision,
    explicit_bounds double precision[] NOT NULL,
    bucket_counts bigint[] NOT NULL,
    PRIMARY KEY (series_id, time)
);

-- when: timescaledb
SELECT create_hypertable('metrics_histograms', by_range('time', INTERVAL '1 day'), create_default_indexes => false);

-- unless: timescaledb
SELECT create_partitioned('metrics_histograms', 'time');

CREATE TABLE metrics_exponential_histograms (
    time timestamptz NOT NULL,
    series_id bigint NOT NULL,
    event_id uuid NOT NULL,
    region text NOT NULL,
    received_time timestamptz NOT NULL,
    count bigint NOT NULL,
    sum double precision,
    min double precision,
    max double precision,
    scale integer NOT NULL,
    zero_count bigint NOT NULL,
    zero_threshold double precision NOT NULL,
    positive_offset integer NOT NULL,
    positive_counts bigint[] NOT NULL,
    negative_offset integer NOT NULL,
    negative_counts bigint[] NOT NULL,
    PRIMARY KEY (series_id, time)
);

-- when: timescaledb
SELECT create_hypertable(
    'metrics_exponential_histograms', by_range('time', INTERVAL '1 day'), create_default_indexes => false
);

-- unless: timescaledb
SELECT create_partitioned('metrics_exponential_histograms', 'time');

CREATE TABLE metrics_summaries (
    time timestamptz NOT NULL,
    series_id bigint NOT NULL,
    event_id uuid NOT NULL,
    region text NOT NULL,
    received_time timestamptz NOT NULL,
    count bigint NOT NULL,
    sum double precision,
    quantiles double precision[] NOT NULL,
    quantile_values double precision[] NOT NULL,
    PRIMARY KEY (series_id, time)
);

-- when: timescaledb
SELECT create_hypertable('metrics_summaries', by_range('time', INTERVAL '1 day'), create_default_indexes => false);

-- unless: timescaledb
SELECT create_partitioned('metrics_summaries', 'time');

-- Gauges and sums as people and Grafana read them.
CREATE VIEW metrics AS
SELECT
    p.time,
    s.metric_name,
    s.service,
    s.host,
    s.tenant,
    p.region,
    s.type,
    s.unit,
    s.labels,
    p.value,
    replace(p.event_id::text, '-', '') AS event_id
FROM metrics_points AS p
JOIN metric_series AS s USING (series_id);
