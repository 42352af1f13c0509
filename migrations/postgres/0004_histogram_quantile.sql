-- q as it must be: between 0 and 1.
CREATE FUNCTION checked_quantile(q double precision) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF NOT q BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'A quantile is between 0 and 1, not %: write 0.99 for the 99th percentile.', q
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN q;
END
$$;

-- The q-quantile of a histogram with buckets (-inf, b1], (b1, b2], … (bn, +inf): linear interpolation inside the
-- bucket where it falls, as Prometheus' histogram_quantile does. The lowest bucket starts at 0 where b1 > 0; a quantile
-- in it is b1 where b1 <= 0, one in the last bucket is bn. Null where there is no observation, no bound, or another
-- number of counts than one more than of bounds.
CREATE FUNCTION histogram_quantile(q double precision, bounds double precision[], counts bigint[])
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
            RETURN lower_bound + (bounds[i] - lower_bound) * (rank - below) / counts[i];
        END IF;
        below := below + counts[i];
    END LOOP;
    RETURN bounds[last];
END
$$;
