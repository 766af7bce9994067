-- +goose Up

-- API keys, in the same columns as in SQLite, so that the same statements serve both. Of a token there is its
-- SHA-256 only; a signing secret has to be usable and is kept as it is, as the deployment's own is in
-- settings. Times are microseconds since 1970.
CREATE TABLE keys (
    id               TEXT   PRIMARY KEY,
    name             TEXT   NOT NULL,
    scopes           TEXT   NOT NULL,  -- separated by blanks
    token_hash       BYTEA  NOT NULL,
    old_token_hash   BYTEA,            -- of the token before, valid until old_token_until
    old_token_until  BIGINT,
    secret           TEXT   NOT NULL,
    old_secret       TEXT,             -- signs as well, until old_secret_until
    old_secret_until BIGINT,
    created_at       BIGINT NOT NULL,
    expires_at       BIGINT,
    revoked_at       BIGINT,
    last_used_at     BIGINT
);

-- A name belongs to one key that is not revoked.
CREATE UNIQUE INDEX keys_name ON keys (name) WHERE revoked_at IS NULL;

-- +goose Down
DROP TABLE keys;
