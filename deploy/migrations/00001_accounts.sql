-- The tables of the accounts room, in the subset of SQL that PostgreSQL and SQLite share.
-- Times are BIGINT unix milliseconds (columns ending in _us: microseconds), ids are TEXT made by Go, JSON is TEXT.

-- +goose Up

CREATE TABLE orgs (
    slug       TEXT    NOT NULL PRIMARY KEY,
    is_first   BOOLEAN NOT NULL,
    created_at BIGINT  NOT NULL,
    created_by TEXT    NOT NULL
);
-- Two processes that both find no org yet cannot both make the first.
CREATE UNIQUE INDEX orgs_first ON orgs (is_first) WHERE is_first;

CREATE TABLE service_accounts (
    id                  TEXT    NOT NULL PRIMARY KEY,
    org                 TEXT    NOT NULL REFERENCES orgs (slug),
    name                TEXT    NOT NULL,
    name_lower          TEXT    NOT NULL, -- lower-cased in Go: LOWER differs between databases
    environment         TEXT    NOT NULL CHECK (environment IN ('production', 'staging', 'development')),
    description         TEXT    NOT NULL,
    intended_scope      TEXT    NOT NULL,
    abuse_detection     BOOLEAN NOT NULL,
    team                TEXT    NOT NULL,
    cost_centre         TEXT    NOT NULL,
    requests_per_second BIGINT  NOT NULL CHECK (requests_per_second >= 0),
    bytes_per_second    BIGINT  NOT NULL CHECK (bytes_per_second >= 0),
    key_prefix          TEXT    NOT NULL, -- of the newest key
    version             BIGINT  NOT NULL,
    created_at          BIGINT  NOT NULL,
    created_by          TEXT    NOT NULL,
    updated_at          BIGINT  NOT NULL,
    deleted_at          BIGINT,
    deleted_by          TEXT,
    live                BOOLEAN GENERATED ALWAYS AS (deleted_at IS NULL) STORED
);
CREATE UNIQUE INDEX service_accounts_live_name ON service_accounts (org, environment, name_lower) WHERE deleted_at IS NULL;
-- A list is merged from one index range per (live, environment), so that every page reads a bounded number of rows.
CREATE INDEX service_accounts_by_name ON service_accounts (org, live, environment, name_lower, id);
CREATE INDEX service_accounts_by_created ON service_accounts (org, live, environment, created_at, id);

-- A key is a row of its own, so that an account may have several. It is never removed. hash is the SHA-256 of the whole key.
CREATE TABLE keys (
    prefix       TEXT   NOT NULL PRIMARY KEY,
    org          TEXT   NOT NULL REFERENCES orgs (slug),
    kind         TEXT   NOT NULL CHECK (kind IN ('service_account', 'person', 'detector')),
    subject_id   TEXT   NOT NULL, -- service_accounts.id, or the id of the person or detector
    subject_name TEXT   NOT NULL, -- of a person or detector; '' for service accounts, whose name is in their row
    hash         BYTEA  NOT NULL,
    version      BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    created_by   TEXT   NOT NULL,
    revoked_at   BIGINT,
    revoked_by   TEXT
);
CREATE UNIQUE INDEX keys_by_hash ON keys (hash);
CREATE INDEX keys_by_subject ON keys (org, subject_id, created_at, prefix);
CREATE INDEX keys_by_kind ON keys (org, kind, created_at, prefix);

CREATE TABLE key_changes (
    prefix  TEXT   NOT NULL,
    version BIGINT NOT NULL,
    at      BIGINT NOT NULL, -- the database's clock
    PRIMARY KEY (prefix, version)
);
CREATE INDEX key_changes_by_at ON key_changes (at);

-- When a key was first and last used.
CREATE TABLE seen (
    prefix   TEXT   NOT NULL PRIMARY KEY,
    first_at BIGINT NOT NULL,
    last_at  BIGINT NOT NULL
);

-- The same over all keys of an account, and the columns that a list sorted by it needs. 0 is never.
CREATE TABLE account_seen (
    account_id  TEXT    NOT NULL PRIMARY KEY REFERENCES service_accounts (id),
    org         TEXT    NOT NULL,
    live        BOOLEAN NOT NULL,
    environment TEXT    NOT NULL,
    first_at    BIGINT  NOT NULL,
    last_at     BIGINT  NOT NULL
);
CREATE INDEX account_seen_by_last ON account_seen (org, live, environment, last_at, account_id);
CREATE INDEX account_seen_by_first ON account_seen (org, live, environment, first_at, account_id);

-- What each edge has applied of key_changes: by the database's clock, in microseconds, so that a wake within the same millisecond counts.
CREATE TABLE edges (
    id            TEXT   NOT NULL PRIMARY KEY,
    applied_at_us BIGINT NOT NULL,
    seen_at_us    BIGINT NOT NULL
);

-- One chain per org: hash covers the row and the hash of the row before it.
CREATE TABLE audit_events (
    org          TEXT   NOT NULL,
    seq          BIGINT NOT NULL,
    id           TEXT   NOT NULL,
    at           BIGINT NOT NULL, -- never falls along seq
    actor        TEXT   NOT NULL,
    action       TEXT   NOT NULL,
    target_kind  TEXT   NOT NULL,
    target_id    TEXT   NOT NULL,
    target_label TEXT   NOT NULL,
    before_json  TEXT,
    after_json   TEXT,
    source_ip    TEXT   NOT NULL,
    source_via   TEXT   NOT NULL,
    hash         BYTEA  NOT NULL,
    PRIMARY KEY (org, seq)
);
CREATE INDEX audit_events_by_at ON audit_events (org, at, seq);
CREATE INDEX audit_events_by_action ON audit_events (org, action, seq);
CREATE INDEX audit_events_by_actor ON audit_events (org, actor, seq);
CREATE INDEX audit_events_by_target ON audit_events (org, target_id, seq);
CREATE INDEX audit_events_by_kind ON audit_events (org, target_kind, seq);

-- The head is kept outside the chain, so that rows cut off its end are missed.
CREATE TABLE audit_heads (
    org   TEXT   NOT NULL PRIMARY KEY,
    count BIGINT NOT NULL,
    at    BIGINT NOT NULL,
    hash  BYTEA  NOT NULL
);
-- Retention leaves the place and hash of the last row it took, which is what the first row left is chained to.
CREATE TABLE audit_checkpoints (
    org        TEXT   NOT NULL,
    seq        BIGINT NOT NULL,
    hash       BYTEA  NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (org, seq)
);

CREATE TABLE admin_tokens (
    prefix      TEXT   NOT NULL PRIMARY KEY,
    org         TEXT   NOT NULL REFERENCES orgs (slug),
    name        TEXT   NOT NULL,
    hash        BYTEA  NOT NULL,
    permissions TEXT   NOT NULL, -- space-separated
    created_at  BIGINT NOT NULL,
    created_by  TEXT   NOT NULL,
    expires_at  BIGINT,
    revoked_at  BIGINT,
    revoked_by  TEXT
);
CREATE INDEX admin_tokens_by_org ON admin_tokens (org, created_at, prefix);

-- Sign-ins of the console and the one-time links that start one. hash is the SHA-256 of the random id.
CREATE TABLE sessions (
    hash        BYTEA  NOT NULL PRIMARY KEY,
    kind        TEXT   NOT NULL CHECK (kind IN ('session', 'link')),
    org         TEXT   NOT NULL,
    actor       TEXT   NOT NULL,
    permissions TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL
);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE idempotency_keys (
    org        TEXT   NOT NULL,
    key_hash   BYTEA  NOT NULL,
    body_hash  BYTEA  NOT NULL,
    account_id TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (org, key_hash)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
