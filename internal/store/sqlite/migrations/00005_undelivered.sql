-- +goose Up

-- Parked callbacks by destination, the one whose work ended first in front.
CREATE INDEX requests_undelivered ON requests (waits_for, completed_at) WHERE waits_for IS NOT NULL;

-- +goose Down
DROP INDEX requests_undelivered;
