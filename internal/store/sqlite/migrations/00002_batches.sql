-- +goose Up

-- Submissions that came together share a batch_id; NULL for everything else.
ALTER TABLE requests ADD COLUMN batch_id TEXT;

-- The few rows of a batch, in order of seq.
CREATE INDEX requests_batch ON requests (batch_id) WHERE batch_id IS NOT NULL;

-- +goose Down
DROP INDEX requests_batch;
ALTER TABLE requests DROP COLUMN batch_id;
