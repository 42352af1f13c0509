-- A histogram or summary of which the client said that nothing was recorded has no count, as a gauge or sum has no value.
-- As one of 0 observations it looked like a counter that began anew, and all that was counted before came once more.
ALTER TABLE metrics_histograms ALTER COLUMN count DROP NOT NULL;

ALTER TABLE metrics_exponential_histograms ALTER COLUMN count DROP NOT NULL;

ALTER TABLE metrics_summaries ALTER COLUMN count DROP NOT NULL;
