-- Histograms as values: added up over series and time by histogram_sum, what happened between two points of a
-- cumulative series by histogram_delta, and asked by histogram_quantile. For example the 99th percentile by minute:
--
--     SELECT date_trunc('minute', time), histogram_quantile(0.99, histogram_sum(buckets))
--     FROM (SELECT time, (explicit_bounds, bucket_counts)::explicit_histogram AS buckets FROM metrics_histograms) AS h
--     GROUP BY 1
--
-- and of cumulative series `histogram_delta(lag(buckets) OVER (PARTITION BY series_id ORDER BY time), buckets)` in
-- place of buckets.
CREATE TYPE explicit_histogram AS (
    bounds double precision[],
    counts bigint[]
);

-- The columns of metrics_exponential_histograms from scale on. Bucket i of a side is (base^i, base^(i + 1)], base being
-- 2^(2^-scale); an offset is the first count's i.
CREATE TYPE exponential_histogram AS (
    scale integer,
    zero_count bigint,
    zero_threshold double precision,
    positive_offset integer,
    positive_counts bigint[],
    negative_offset integer,
    negative_counts bigint[]
);

CREATE FUNCTION histogram_quantile(q double precision, h explicit_histogram) RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT histogram_quantile(q, (h).bounds, (h).counts)
$$;

CREATE FUNCTION histogram_plus(a explicit_histogram, b explicit_histogram) RETURNS explicit_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF a.bounds <> b.bounds OR cardinality(a.counts) <> cardinality(b.counts) THEN
        RAISE EXCEPTION 'Histograms with bounds % and % have no sum: GROUP BY explicit_bounds too.', a.bounds, b.bounds
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN (a.bounds, ARRAY(SELECT x + y FROM unnest(a.counts, b.counts) WITH ORDINALITY AS c (x, y, n) ORDER BY n));
END
$$;

CREATE AGGREGATE histogram_sum(explicit_histogram) (
    SFUNC = histogram_plus, STYPE = explicit_histogram, COMBINEFUNC = histogram_plus, PARALLEL = SAFE
);

-- All of `later` where the counts began anew: one is smaller than before, or the bounds are others.
CREATE FUNCTION histogram_delta(earlier explicit_histogram, later explicit_histogram) RETURNS explicit_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    delta bigint[] := ARRAY(
        SELECT x - y FROM unnest(later.counts, earlier.counts) WITH ORDINALITY AS c (x, y, n) ORDER BY n
    );
BEGIN
    IF earlier.bounds <> later.bounds OR cardinality(earlier.counts) <> cardinality(later.counts) OR 0 > ANY (delta) THEN
        RETURN later;
    END IF;
    RETURN (later.bounds, delta);
END
$$;

-- Where bucket `index` begins; a fraction of an index is a place inside the bucket before it. Beyond what a double
-- holds it is Infinity or 0, and no scale is too large or too small.
CREATE FUNCTION exponential_bound(scale integer, index double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT CASE WHEN e >= 1024 THEN 'Infinity' WHEN e < -1074 THEN 0 ELSE power(2::double precision, e) END
FROM (SELECT index * power(2::double precision, -greatest(-40, least(1000, scale))) AS e) AS exponent
$$;

-- The q-quantile as Prometheus' histogram_quantile finds it in native histograms, counted from the low end: exponential
-- interpolation inside a bucket, linear in the zero bucket, which reaches to one side only where the other is empty.
-- Null where there is no observation.
CREATE FUNCTION histogram_quantile(q double precision, h exponential_histogram) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    negative numeric := coalesce((SELECT sum(c) FROM unnest(h.negative_counts) AS c), 0);
    positive numeric := coalesce((SELECT sum(c) FROM unnest(h.positive_counts) AS c), 0);
    rank double precision := checked_quantile(q) * (negative + h.zero_count + positive)::double precision;
    below numeric := 0;
    count bigint;
    lower_bound double precision;
    upper_bound double precision;
BEGIN
    FOR i IN REVERSE cardinality(h.negative_counts)..1 LOOP
        count := h.negative_counts[i];
        IF count > 0 AND below + count >= rank THEN
            RETURN -exponential_bound(h.scale, h.negative_offset::double precision + i - (rank - below) / count);
        END IF;
        below := below + count;
    END LOOP;
    IF h.zero_count > 0 AND below + h.zero_count >= rank THEN
        lower_bound := CASE WHEN negative = 0 AND positive > 0 THEN 0 ELSE -h.zero_threshold END;
        upper_bound := CASE WHEN positive = 0 AND negative > 0 THEN 0 ELSE h.zero_threshold END;
        RETURN lower_bound + (upper_bound - lower_bound) * (rank - below) / h.zero_count;
    END IF;
    below := below + h.zero_count;
    FOR i IN 1..cardinality(h.positive_counts) LOOP
        count := h.positive_counts[i];
        IF count > 0 AND below + count >= rank THEN
            RETURN exponential_bound(h.scale, h.positive_offset::double precision + i - 1 + (rank - below) / count);
        END IF;
        below := below + count;
    END LOOP;
    RETURN NULL;
END
$$;

-- The counts of buckets that are joined by 2^steps, the first of them being the one that holds bucket `first`.
CREATE FUNCTION exponential_counts(first integer, counts bigint[], steps integer) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT ARRAY(
    SELECT sum(c)::bigint FROM unnest(counts) WITH ORDINALITY AS u (c, n)
    GROUP BY (first::bigint + n - 1) >> steps ORDER BY (first::bigint + n - 1) >> steps
)
$$;

-- The same observations at a scale that is not larger.
CREATE FUNCTION exponential_rescaled(h exponential_histogram, to_scale integer) RETURNS exponential_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    steps integer := least(h.scale::bigint - to_scale, 31);  -- more leave no more than one bucket on either side of 1
BEGIN
    IF steps = 0 THEN
        RETURN h;
    END IF;
    RETURN (
        to_scale, h.zero_count, h.zero_threshold,
        h.positive_offset >> steps, exponential_counts(h.positive_offset, h.positive_counts, steps),
        h.negative_offset >> steps, exponential_counts(h.negative_offset, h.negative_counts, steps)
    );
END
$$;

-- How many buckets it takes from the first to the last of both.
CREATE FUNCTION exponential_span(a_offset integer, a_counts bigint[], b_offset integer, b_counts bigint[])
RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT CASE
    WHEN cardinality(a_counts) = 0 THEN cardinality(b_counts)
    WHEN cardinality(b_counts) = 0 THEN cardinality(a_counts)
    ELSE greatest(a_offset::bigint + cardinality(a_counts), b_offset::bigint + cardinality(b_counts))
        - least(a_offset, b_offset)
END
$$;

CREATE FUNCTION exponential_first(a_offset integer, a_counts bigint[], b_offset integer, b_counts bigint[])
RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT CASE
    WHEN cardinality(a_counts) = 0 THEN b_offset
    WHEN cardinality(b_counts) = 0 THEN a_offset
    ELSE least(a_offset, b_offset)
END
$$;

-- Counts of one scale added up, from bucket `first` on; neither may begin before it.
CREATE FUNCTION exponential_added(first integer, a_offset integer, a_counts bigint[], b_offset integer, b_counts bigint[])
RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT ARRAY(
    SELECT coalesce(x, 0) + coalesce(y, 0)
    FROM unnest(
        CASE WHEN a_counts = '{}' THEN a_counts ELSE array_fill(0::bigint, ARRAY[a_offset - first]) || a_counts END,
        CASE WHEN b_counts = '{}' THEN b_counts ELSE array_fill(0::bigint, ARRAY[b_offset - first]) || b_counts END
    ) WITH ORDINALITY AS c (x, y, n)
    ORDER BY n
)
$$;

-- The same observations with those of buckets that begin below the zero threshold in the zero bucket, which grows to
-- the end of the last of these.
CREATE FUNCTION exponential_zero_filled(h exponential_histogram) RETURNS exponential_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    bucket record;
    threshold double precision := h.zero_threshold;
BEGIN
    FOR bucket IN
        SELECT 'positive' AS side, n, c, h.positive_offset::bigint + n AS ends
        FROM unnest(h.positive_counts) WITH ORDINALITY AS u (c, n)
        UNION ALL
        SELECT 'negative', n, c, h.negative_offset::bigint + n
        FROM unnest(h.negative_counts) WITH ORDINALITY AS u (c, n)
    LOOP
        IF bucket.c <> 0 AND exponential_bound(h.scale, bucket.ends - 1) < threshold THEN
            h.zero_threshold := greatest(h.zero_threshold, exponential_bound(h.scale, bucket.ends));
            h.zero_count := h.zero_count + bucket.c;
            IF bucket.side = 'positive' THEN
                h.positive_counts[bucket.n] := 0;
            ELSE
                h.negative_counts[bucket.n] := 0;
            END IF;
        END IF;
    END LOOP;
    RETURN h;
END
$$;

-- At the smaller of both scales, or at the largest where a side has 1,024 buckets at most; with the larger of both zero
-- thresholds.
CREATE FUNCTION histogram_plus(a exponential_histogram, b exponential_histogram) RETURNS exponential_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    common integer := least(a.scale, b.scale);
    positive_first integer;
    negative_first integer;
    total exponential_histogram;
BEGIN
    LOOP
        a := exponential_rescaled(a, common);
        b := exponential_rescaled(b, common);
        EXIT WHEN greatest(
            exponential_span(a.positive_offset, a.positive_counts, b.positive_offset, b.positive_counts),
            exponential_span(a.negative_offset, a.negative_counts, b.negative_offset, b.negative_counts)
        ) <= 1024;
        common := common - 1;
    END LOOP;
    positive_first := exponential_first(a.positive_offset, a.positive_counts, b.positive_offset, b.positive_counts);
    negative_first := exponential_first(a.negative_offset, a.negative_counts, b.negative_offset, b.negative_counts);
    total := (
        common, a.zero_count + b.zero_count, greatest(a.zero_threshold, b.zero_threshold),
        positive_first,
        exponential_added(positive_first, a.positive_offset, a.positive_counts, b.positive_offset, b.positive_counts),
        negative_first,
        exponential_added(negative_first, a.negative_offset, a.negative_counts, b.negative_offset, b.negative_counts)
    );
    RETURN CASE WHEN a.zero_threshold = b.zero_threshold THEN total ELSE exponential_zero_filled(total) END;
END
$$;

CREATE AGGREGATE histogram_sum(exponential_histogram) (
    SFUNC = histogram_plus, STYPE = exponential_histogram, COMBINEFUNC = histogram_plus, PARALLEL = SAFE
);

-- All of `later` where the counts began anew: one is smaller than before.
CREATE FUNCTION histogram_delta(earlier exponential_histogram, later exponential_histogram)
RETURNS exponential_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    delta exponential_histogram;
BEGIN
    earlier.zero_count := -earlier.zero_count;
    earlier.positive_counts := ARRAY(SELECT -c FROM unnest(earlier.positive_counts) WITH ORDINALITY AS u (c, n) ORDER BY n);
    earlier.negative_counts := ARRAY(SELECT -c FROM unnest(earlier.negative_counts) WITH ORDINALITY AS u (c, n) ORDER BY n);
    delta := histogram_plus(later, earlier);
    IF delta.zero_count < 0 OR 0 > ANY (delta.positive_counts) OR 0 > ANY (delta.negative_counts) THEN
        RETURN later;
    END IF;
    RETURN delta;
END
$$;

-- What a summary says of q: its own value, or one by linear interpolation between the two quantiles around it. Null
-- where it has none on either side. Summaries cannot be added up.
CREATE FUNCTION summary_quantile(q double precision, quantiles double precision[], quantile_values double precision[])
RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
WITH known AS (SELECT * FROM unnest(quantiles, quantile_values) AS k (quantile, value)),
below AS (SELECT * FROM known WHERE quantile <= checked_quantile(q) ORDER BY quantile DESC LIMIT 1),
above AS (SELECT * FROM known WHERE quantile >= checked_quantile(q) ORDER BY quantile LIMIT 1)
SELECT CASE
    WHEN above.quantile = below.quantile THEN below.value
    ELSE below.value + (above.value - below.value) * (q - below.quantile) / (above.quantile - below.quantile)
END
FROM below, above
$$;
