-- Optional extensions are switched on where the server has them; later files ask by the same words.
-- when: timescaledb
CREATE EXTENSION IF NOT EXISTS timescaledb;
