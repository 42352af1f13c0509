-- Quantiles and sums that never fail, so that no strange point keeps a query over all series from its answer: what no
-- double holds is Infinity or the nearest, and a count that no bigint holds is the largest one.
--
-- What lies `part` of the way from one number to another. PostgreSQL raises an error where a result is too large, or 0
-- for being too small: so numbers of which the difference may be too large are weighted, and of those that are as good
-- as equal it is the nearer. In PL/pgSQL, which computes nothing of a branch that is not taken.
CREATE FUNCTION interpolated(lower_end double precision, upper_end double precision, part double precision)
RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF part < 1e-18 OR lower_end = upper_end THEN
        RETURN lower_end;
    ELSIF part >= 1 THEN
        RETURN upper_end;
    ELSIF least(abs(lower_end), abs(upper_end)) > 1e290 THEN
        RETURN lower_end * (1 - part) + upper_end * part;
    ELSIF abs(upper_end - lower_end) < 1e-290 THEN
        RETURN CASE WHEN part < 0.5 THEN lower_end ELSE upper_end END;
    END IF;
    RETURN lower_end + (upper_end - lower_end) * part;
END
$$;

CREATE OR REPLACE FUNCTION histogram_quantile(q double precision, bounds double precision[], counts bigint[])
RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    last integer := cardinality(bounds);
    total double precision := (SELECT sum(c) FROM unnest(counts) AS c);
    rank double precision := checked_quantile(q) * total;
    below double precision := 0;
    lower_bound double precision;
BEGIN
    IF last = 0 OR cardinality(counts) <> last + 1 OR total = 0 THEN
        RETURN NULL;
    END IF;
    FOR i IN 1..last LOOP
        IF counts[i] > 0 AND below + counts[i] >= rank THEN
            IF i = 1 AND bounds[1] <= 0 THEN
                RETURN bounds[1];
            END IF;
            lower_bound := CASE WHEN i = 1 THEN 0 ELSE bounds[i - 1] END;
            RETURN interpolated(lower_bound, bounds[i], (rank - below) / counts[i]);
        END IF;
        below := below + counts[i];
    END LOOP;
    RETURN bounds[last];
END
$$;

CREATE OR REPLACE FUNCTION histogram_quantile(q double precision, h exponential_histogram) RETURNS double precision
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
        RETURN interpolated(lower_bound, upper_bound, (rank - below) / h.zero_count);
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

-- A quantile that is none is not looked at.
CREATE OR REPLACE FUNCTION summary_quantile(
    q double precision, quantiles double precision[], quantile_values double precision[]
) RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
WITH known AS (SELECT * FROM unnest(quantiles, quantile_values) AS k (quantile, value) WHERE quantile BETWEEN 0 AND 1),
below AS (SELECT * FROM known WHERE quantile <= checked_quantile(q) ORDER BY quantile DESC LIMIT 1),
above AS (SELECT * FROM known WHERE quantile >= checked_quantile(q) ORDER BY quantile LIMIT 1)
SELECT CASE
    WHEN above.quantile = below.quantile THEN below.value
    ELSE interpolated(below.value, above.value, (q - below.quantile) / (above.quantile - below.quantile))
END
FROM below, above
$$;

-- From scale 100 on every bound that an index reaches is 1.
CREATE OR REPLACE FUNCTION exponential_bound(scale integer, index double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT CASE WHEN e >= 1024 THEN 'Infinity' WHEN e < -1074 THEN 0 ELSE power(2::double precision, e) END
FROM (
    SELECT CASE WHEN abs(index) < 1e-200 THEN 0 ELSE index END
        * power(2::double precision, -greatest(-40, least(100, scale))) AS e
) AS exponent
$$;

-- Of counts, of which negative ones are to be taken away.
CREATE FUNCTION counts_added(a bigint, b bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT CASE
    WHEN a > 9223372036854775807 - greatest(b, 0) THEN 9223372036854775807
    WHEN a < -9223372036854775807 - least(b, 0) THEN -9223372036854775807
    ELSE a + b
END
$$;

CREATE OR REPLACE FUNCTION histogram_plus(a explicit_histogram, b explicit_histogram) RETURNS explicit_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF a.bounds <> b.bounds OR cardinality(a.counts) <> cardinality(b.counts) THEN
        RAISE EXCEPTION 'Histograms with bounds % and % have no sum: GROUP BY explicit_bounds too.', a.bounds, b.bounds
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN (
        a.bounds,
        ARRAY(SELECT counts_added(x, y) FROM unnest(a.counts, b.counts) WITH ORDINALITY AS c (x, y, n) ORDER BY n)
    );
END
$$;

CREATE OR REPLACE FUNCTION exponential_counts(first integer, counts bigint[], steps integer) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT ARRAY(
    SELECT least(greatest(sum(c), -9223372036854775807), 9223372036854775807)::bigint
    FROM unnest(counts) WITH ORDINALITY AS u (c, n)
    GROUP BY (first::bigint + n - 1) >> steps ORDER BY (first::bigint + n - 1) >> steps
)
$$;

CREATE OR REPLACE FUNCTION exponential_added(
    first integer, a_offset integer, a_counts bigint[], b_offset integer, b_counts bigint[]
) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT ARRAY(
    SELECT counts_added(coalesce(x, 0), coalesce(y, 0))
    FROM unnest(
        CASE WHEN a_counts = '{}' THEN a_counts ELSE array_fill(0::bigint, ARRAY[a_offset - first]) || a_counts END,
        CASE WHEN b_counts = '{}' THEN b_counts ELSE array_fill(0::bigint, ARRAY[b_offset - first]) || b_counts END
    ) WITH ORDINALITY AS c (x, y, n)
    ORDER BY n
)
$$;

CREATE OR REPLACE FUNCTION exponential_zero_filled(h exponential_histogram) RETURNS exponential_histogram
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
            h.zero_count := counts_added(h.zero_count, bucket.c);
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

CREATE OR REPLACE FUNCTION histogram_plus(a exponential_histogram, b exponential_histogram) RETURNS exponential_histogram
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    common integer;
    positive_first integer;
    negative_first integer;
    total exponential_histogram;
BEGIN
    a.scale := greatest(a.scale, -1000);  -- at all scales below a bucket ends at 1 or begins there
    b.scale := greatest(b.scale, -1000);
    common := least(a.scale, b.scale);
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
        common, counts_added(a.zero_count, b.zero_count), greatest(a.zero_threshold, b.zero_threshold),
        positive_first,
        exponential_added(positive_first, a.positive_offset, a.positive_counts, b.positive_offset, b.positive_counts),
        negative_first,
        exponential_added(negative_first, a.negative_offset, a.negative_counts, b.negative_offset, b.negative_counts)
    );
    RETURN CASE WHEN a.zero_threshold = b.zero_threshold THEN total ELSE exponential_zero_filled(total) END;
END
$$;
