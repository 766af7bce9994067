-- +goose Up

-- A row of counters that is updated in place is found by going through all of its versions, and for as long as anybody
-- keeps a transaction open (pg_dump does) none of them is removed. So the row of a writer moves: its key rises with each
-- change, and the last is found from the end. What a writer has below 32768 is a row that stays: it says that there is
-- such a writer.
ALTER TABLE counters ALTER COLUMN writer TYPE BIGINT;
CREATE INDEX IF NOT EXISTS counters_writers ON counters (writer, node) WHERE writer < 32768;

-- Rows leave their pages with every change, so these are cleaned as often as autovacuum comes by.
ALTER TABLE counters SET (
    fillfactor = 100, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0
);

-- +goose Down
UPDATE counters SET counts = moved.counts
FROM counters AS moved
WHERE counters.writer < 32768 AND moved.node = counters.node AND moved.writer >> 48 = counters.writer + 1;
DELETE FROM counters WHERE writer >= 32768;
DROP INDEX counters_writers;
ALTER TABLE counters RESET (
    autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_insert_threshold, autovacuum_vacuum_cost_delay
);
ALTER TABLE counters SET (fillfactor = 50);
ALTER TABLE counters ALTER COLUMN writer TYPE SMALLINT;
