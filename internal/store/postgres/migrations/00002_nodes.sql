-- +goose Up

-- steady_since: since when its signs of life have come without a gap. state: what it tells the others, which only
-- they read; NULL: nothing yet.
ALTER TABLE nodes
    ADD COLUMN address      TEXT        NOT NULL DEFAULT '',
    ADD COLUMN steady_since TIMESTAMPTZ NOT NULL DEFAULT now(),
    ADD COLUMN state        BYTEA;

-- +goose Down
ALTER TABLE nodes
    DROP COLUMN address,
    DROP COLUMN steady_since,
    DROP COLUMN state;
