-- +goose Up

-- One row per request: its history and its place in the queue. Times are
-- microseconds since 1970; created_at is inside id (UUID version 7). The key is
-- the order of the id (tandem.IDOrder): rows are found by id, listed by time and
-- appended at the end of the table through the table itself, without an index.
CREATE TABLE requests (
    seq               INTEGER PRIMARY KEY,
    id                TEXT    NOT NULL,
    mode              TEXT    NOT NULL,
    task              TEXT    NOT NULL,
    status            TEXT    NOT NULL,
    callback_status   TEXT    NOT NULL,
    complexity        INTEGER NOT NULL,
    callback_attempts INTEGER NOT NULL DEFAULT 0,
    processing_us     INTEGER NOT NULL DEFAULT 0,
    started_at        INTEGER,
    completed_at      INTEGER,
    lane              TEXT,             -- NULL: nothing to hand out
    due_at            INTEGER,          -- NULL exactly when lane is
    error_code        TEXT    NOT NULL DEFAULT '',
    error_message     TEXT    NOT NULL DEFAULT '',
    callback_url      TEXT    NOT NULL,
    data              BLOB    NOT NULL,
    result            BLOB
) STRICT;

-- The queue: what is due in a lane, oldest first. Holds unfinished rows only.
CREATE INDEX requests_queue ON requests (lane, due_at, seq) WHERE lane IS NOT NULL;

-- The history at any filter: every combination of the three is a range in order
-- of seq, which SQLite appends to every index.
CREATE INDEX requests_history ON requests (mode, status, task);

-- The log of callbacks. An expiry repeats the number of the last try, with its own outcome.
CREATE TABLE attempts (
    request     INTEGER NOT NULL,       -- requests.seq
    number      INTEGER NOT NULL,
    outcome     TEXT    NOT NULL,
    started_at  INTEGER NOT NULL,
    duration_us INTEGER NOT NULL,
    status_code INTEGER NOT NULL,
    error       TEXT    NOT NULL,
    next_at     INTEGER,
    PRIMARY KEY (request, number, outcome)
) STRICT, WITHOUT ROWID;

-- What /stats shows, kept in the same transactions as the rows it counts. One
-- row for all of them, because every transaction changes half a dozen.
CREATE TABLE totals (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    counts TEXT    NOT NULL             -- a JSON object
) STRICT;
INSERT INTO totals (only, counts) VALUES (1, '{}');
CREATE VIEW counters AS SELECT key AS name, value FROM totals, json_each(counts);

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE settings;
DROP VIEW counters;
DROP TABLE totals;
DROP TABLE attempts;
DROP TABLE requests;
