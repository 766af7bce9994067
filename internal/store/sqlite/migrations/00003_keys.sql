-- +goose Up

-- API keys. Of a token there is its SHA-256 only; a signing secret has to be usable and is
-- kept as it is, as the deployment's own is in settings. Times are microseconds since 1970.
CREATE TABLE keys (
    id               TEXT    PRIMARY KEY,
    name             TEXT    NOT NULL,
    scopes           TEXT    NOT NULL,  -- separated by blanks
    token_hash       BLOB    NOT NULL,
    old_token_hash   BLOB,              -- of the token before, valid until old_token_until
    old_token_until  INTEGER,
    secret           TEXT    NOT NULL,
    old_secret       TEXT,              -- signs as well, until old_secret_until
    old_secret_until INTEGER,
    created_at       INTEGER NOT NULL,
    expires_at       INTEGER,
    revoked_at       INTEGER,
    last_used_at     INTEGER
) STRICT;

-- A name belongs to one key that is not revoked.
CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;

-- The key that asked for a request; NULL where nobody is asked for one.
ALTER TABLE requests ADD COLUMN key_id TEXT;

-- requests_history for the rows of one key.
CREATE INDEX requests_key ON requests (key_id, mode, status, task) WHERE key_id IS NOT NULL;

-- How many submissions of a key are in the history, kept in the transactions that change it.
CREATE TABLE key_totals (
    key_id      TEXT    PRIMARY KEY,
    submissions INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE key_totals;
DROP INDEX requests_key;
ALTER TABLE requests DROP COLUMN key_id;
DROP TABLE keys;
