-- +goose Up

-- Indexes of River's that nothing here asks: its jobs are all of one kind, without arguments and without metadata.
-- To keep them cost as much as everything else that is written for a request (docs/performance.md).
DROP INDEX IF EXISTS river_job_args_index;
DROP INDEX IF EXISTS river_job_metadata_index;
DROP INDEX IF EXISTS river_job_kind;

-- A job is inserted, updated and deleted within moments, and the next fetch has to step over what is left of
-- it. So this small table is cleaned as often as autovacuum comes by, as quickly as it can.
ALTER TABLE river_job SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0
);

-- A request leaves two dead rows in a table that may be large: a fifth of it is late, and oftener than this costs more,
-- because each time all of its indexes are read.
ALTER TABLE requests SET (autovacuum_vacuum_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05);

-- +goose Down
ALTER TABLE requests RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
ALTER TABLE river_job RESET (
    autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_insert_threshold,
    autovacuum_vacuum_cost_delay
);
CREATE INDEX river_job_kind ON river_job (kind);
CREATE INDEX river_job_metadata_index ON river_job USING GIN (metadata);
CREATE INDEX river_job_args_index ON river_job USING GIN (args);
