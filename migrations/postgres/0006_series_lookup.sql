-- Series are looked up by equal name or service; a hash index takes names of any length, a B-tree none over 2,704 bytes.
DROP INDEX metric_series_by_name;

CREATE INDEX metric_series_by_name ON metric_series USING hash (metric_name);

CREATE INDEX metric_series_by_service ON metric_series USING hash (service);
