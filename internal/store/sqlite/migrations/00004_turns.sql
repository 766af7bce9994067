-- +goose Up

-- Who a request counts for where work is shared out: the API key, or a part of the network it came from.
ALTER TABLE requests ADD COLUMN owner TEXT NOT NULL DEFAULT '';

-- The destination that a callback is parked for: it is not dispatched before that can take it. NULL: it is not parked.
ALTER TABLE requests ADD COLUMN waits_for TEXT;

UPDATE requests SET owner = key_id WHERE lane IS NOT NULL AND key_id IS NOT NULL;

-- The queue: what is due in a lane, by owner, oldest first. Holds unfinished rows only.
DROP INDEX requests_queue;
CREATE INDEX requests_queue ON requests (lane, owner, due_at, seq) WHERE lane IS NOT NULL AND waits_for IS NULL;

-- Parked callbacks by destination and owner, oldest first. completed_at: to find what is too old without reading its row.
CREATE INDEX requests_parked ON requests (waits_for, owner, due_at, seq, completed_at) WHERE waits_for IS NOT NULL;

-- +goose Down
DROP INDEX requests_parked;
DROP INDEX requests_queue;
CREATE INDEX requests_queue ON requests (lane, due_at, seq) WHERE lane IS NOT NULL;
ALTER TABLE requests DROP COLUMN waits_for;
ALTER TABLE requests DROP COLUMN owner;
