-- The tables of the signals room, in the subset of SQL that PostgreSQL and SQLite share.
-- Times are BIGINT unix milliseconds, ids are TEXT made by Go, JSON is TEXT.

-- +goose Up

-- A draft never changes: to edit is to write another. It is shared by the org's admins.
CREATE TABLE policy_drafts (
    id           TEXT   NOT NULL PRIMARY KEY,
    org          TEXT   NOT NULL,
    rules        TEXT   NOT NULL,
    base_version BIGINT NOT NULL, -- the version in force when it was written; 0: none
    created_at   BIGINT NOT NULL,
    created_by   TEXT   NOT NULL,
    version      BIGINT           -- that it became; NULL while it is a draft
);
CREATE INDEX policy_drafts_by_created ON policy_drafts (org, created_at, id);

CREATE TABLE policy_versions (
    org          TEXT   NOT NULL,
    version      BIGINT NOT NULL,
    draft_id     TEXT   NOT NULL,
    rules        TEXT   NOT NULL,
    drafted_at   BIGINT NOT NULL,
    drafted_by   TEXT   NOT NULL,
    activated_at BIGINT NOT NULL,
    activated_by TEXT   NOT NULL,
    PRIMARY KEY (org, version)
);

-- One active version per org. Whoever activates locks its row first.
CREATE TABLE policy_active (
    org     TEXT   NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL -- 0: none yet
);

-- One row per signal, by its id, so that a signal delivered twice is stored once. event is the event as it came; the columns beside it are
-- copies for the indexes and never change, but open and what a resolution sets.
CREATE TABLE alerts (
    id          TEXT    NOT NULL PRIMARY KEY,
    org         TEXT    NOT NULL,
    type        TEXT    NOT NULL,
    category    TEXT    NOT NULL,
    severity    TEXT    NOT NULL,
    account_id  TEXT    NOT NULL, -- of the service account behind the subject; '' for none
    environment TEXT    NOT NULL, -- of that account; '' for none
    detected_at BIGINT  NOT NULL,
    received_at BIGINT  NOT NULL,
    stored_at   BIGINT  NOT NULL,
    open        BOOLEAN NOT NULL,
    event       TEXT    NOT NULL,
    resolution  TEXT,
    note        TEXT,
    resolved_at BIGINT,
    resolved_by TEXT
);
-- A list is merged from one index range per (open, severity), so that every page reads a bounded number of rows.
CREATE INDEX alerts_by_severity ON alerts (org, open, severity, detected_at, id);
CREATE INDEX alerts_by_category ON alerts (org, open, category, severity, detected_at, id);
CREATE INDEX alerts_by_environment ON alerts (org, open, environment, severity, detected_at, id);
CREATE INDEX alerts_by_account ON alerts (org, account_id, open, severity, detected_at, id);
CREATE INDEX alerts_by_type ON alerts (org, open, type, severity, detected_at, id);
CREATE INDEX alerts_by_stored ON alerts (org, stored_at, id);
CREATE INDEX alerts_by_received ON alerts (received_at, id);

-- What the filter dropped, per day: dropped is never silent.
CREATE TABLE signal_drops (
    org          TEXT   NOT NULL,
    subject_kind TEXT   NOT NULL,
    subject_id   TEXT   NOT NULL,
    type         TEXT   NOT NULL,
    reason       TEXT   NOT NULL,
    day          BIGINT NOT NULL, -- days since 1970
    count        BIGINT NOT NULL,
    last_at      BIGINT NOT NULL,
    PRIMARY KEY (org, subject_kind, subject_id, type, reason, day)
);
CREATE INDEX signal_drops_by_day ON signal_drops (day);
