-- +goose Up

-- owner: who a request counts for where work is shared out: the API key, or a part of the network it came from.
-- waits_for: the destination that a callback is parked for; it is not dispatched before that can take it. NULL: it
-- is not parked. Both are part of the name of the job's queue, so that a fetch finds what it may take.
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS owner     TEXT NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS waits_for TEXT;

-- Parked callbacks, to find those that are too old. Holds no others.
CREATE INDEX IF NOT EXISTS requests_parked ON requests (waits_for, owner, completed_at) WHERE waits_for IS NOT NULL;

-- +goose Down
UPDATE river_job SET queue = requests.lane FROM requests WHERE requests.job_id = river_job.id;
DROP INDEX requests_parked;
ALTER TABLE requests
    DROP COLUMN waits_for,
    DROP COLUMN owner;
