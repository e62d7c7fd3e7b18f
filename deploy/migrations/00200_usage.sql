-- What was done with each key, by whom, and what was refused: written by the edges each second, kept for a while. In the subset of SQL that
-- PostgreSQL and SQLite share. Times are BIGINT unix milliseconds.

-- +goose Up

CREATE TABLE key_usage (
    prefix      TEXT   NOT NULL,
    hour        BIGINT NOT NULL, -- its first moment
    requests    BIGINT NOT NULL,
    accepted    BIGINT NOT NULL, -- records, as all until unavailable
    filtered    BIGINT NOT NULL,
    invalid     BIGINT NOT NULL,
    unavailable BIGINT NOT NULL,
    refused     BIGINT NOT NULL, -- requests
    bytes       BIGINT NOT NULL,
    PRIMARY KEY (prefix, hour)
);
CREATE INDEX key_usage_by_hour ON key_usage (hour);

-- The last senders of each key.
CREATE TABLE key_senders (
    prefix     TEXT   NOT NULL,
    address    TEXT   NOT NULL,
    user_agent TEXT   NOT NULL,
    service    TEXT   NOT NULL, -- service.name; '' where none was sent
    first_at   BIGINT NOT NULL,
    last_at    BIGINT NOT NULL,
    count      BIGINT NOT NULL, -- requests
    PRIMARY KEY (prefix, address, user_agent, service)
);
CREATE INDEX key_senders_by_last ON key_senders (last_at);

-- The number of the last batch of each edge process, so that none is added twice.
CREATE TABLE usage_writers (
    writer TEXT   NOT NULL PRIMARY KEY,
    seq    BIGINT NOT NULL,
    at     BIGINT NOT NULL
);

-- The last refused requests. Those of the same sender, key and reason within a second are one row.
CREATE TABLE refusals (
    id         TEXT   NOT NULL PRIMARY KEY, -- sorts by time
    org        TEXT   NOT NULL, -- of the key, where its prefix is known; '' else
    at         BIGINT NOT NULL, -- of the last
    code       BIGINT NOT NULL,
    reason     TEXT   NOT NULL,
    address    TEXT   NOT NULL,
    prefix     TEXT   NOT NULL, -- '' where no well-formed key was sent
    path       TEXT   NOT NULL,
    user_agent TEXT   NOT NULL,
    request_id TEXT   NOT NULL, -- of the last
    count      BIGINT NOT NULL
);
CREATE INDEX refusals_by_org ON refusals (org, id);
CREATE INDEX refusals_by_prefix ON refusals (org, prefix, id);
CREATE INDEX refusals_by_at ON refusals (at);
