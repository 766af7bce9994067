-- +goose Up

-- One row per request: its history. Its place in the queue is a job of River's (river_job), which
-- the row names as long as there is one. What is written of a job is written where job_id says so: whoever comes
-- with a job that the row does not name any more comes too late. created_at is inside id (UUID
-- version 7), so the order of the key is the order of the history.
CREATE TABLE requests (
    id                UUID     PRIMARY KEY,
    mode              TEXT     NOT NULL,
    task              TEXT     NOT NULL,
    status            TEXT     NOT NULL,
    callback_status   TEXT     NOT NULL,
    complexity        SMALLINT NOT NULL,
    callback_attempts INTEGER  NOT NULL DEFAULT 0,
    processing_us     BIGINT   NOT NULL DEFAULT 0,
    job_id            BIGINT,             -- river_job.id; NULL: nothing to hand out
    started_at        TIMESTAMPTZ,
    completed_at      TIMESTAMPTZ,
    lane              TEXT,               -- of the job; NULL exactly when job_id is
    node              TEXT     NOT NULL,  -- who works on it while it is processing
    error_code        TEXT     NOT NULL DEFAULT '',
    error_message     TEXT     NOT NULL DEFAULT '',
    callback_url      TEXT     NOT NULL,
    batch_id          TEXT,               -- submissions that came together
    key_id            TEXT,               -- the API key that asked for it
    data              BYTEA    NOT NULL,
    result            BYTEA
);

-- What is unfinished, by its job.
CREATE INDEX requests_job ON requests (job_id) WHERE job_id IS NOT NULL;

-- What nodes are working on: all that the death of one can leave behind.
CREATE INDEX requests_processing ON requests (node) WHERE status = 'processing';

-- The history at any filter: every combination of the three is a range in order of id.
CREATE INDEX requests_history ON requests (mode, status, task, id);
CREATE INDEX requests_batch ON requests (batch_id, id) WHERE batch_id IS NOT NULL;
CREATE INDEX requests_key ON requests (key_id, mode, status, task, id) WHERE key_id IS NOT NULL;

-- The log of callbacks. An expiry repeats the number of the last try, with its own outcome.
CREATE TABLE attempts (
    request     UUID        NOT NULL,     -- requests.id
    number      INTEGER     NOT NULL,
    outcome     TEXT        NOT NULL,
    started_at  TIMESTAMPTZ NOT NULL,
    duration_us BIGINT      NOT NULL,
    status_code INTEGER     NOT NULL,
    error       TEXT        NOT NULL,
    next_at     TIMESTAMPTZ,
    PRIMARY KEY (request, number, outcome)
);

-- Who takes part, and when that was last certain by the clock of the database.
CREATE TABLE nodes (
    id      TEXT        PRIMARY KEY,
    name    TEXT        NOT NULL,         -- of the machine, for people
    version TEXT        NOT NULL,
    since   TIMESTAMPTZ NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL
);

-- What /stats shows: the sum of all rows. Every writer of every node has a row of its own and changes it in the
-- transactions that it counts; those of dead nodes are folded into the one of node ''.
CREATE TABLE counters (
    node   TEXT     NOT NULL,
    writer SMALLINT NOT NULL,
    counts TEXT     NOT NULL,             -- a JSON object
    PRIMARY KEY (node, writer)
) WITH (fillfactor = 50);
INSERT INTO counters (node, writer, counts) VALUES ('', 0, '{}');

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- +goose Down
DROP TABLE settings;
DROP TABLE counters;
DROP TABLE nodes;
DROP TABLE attempts;
DROP TABLE requests;
