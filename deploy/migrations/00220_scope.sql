-- What the scope judge said, what it cost, and what it saw. In the subset of SQL that PostgreSQL and SQLite share. Times are BIGINT unix
-- milliseconds, days are days since 1970 in UTC, money is in millionths of the currency that the prices are in.

-- +goose Up

CREATE TABLE scope_verdicts (
    id             TEXT   NOT NULL PRIMARY KEY, -- sorts by time
    org            TEXT   NOT NULL,
    account_id     TEXT   NOT NULL,
    at             BIGINT NOT NULL,
    asked_at       BIGINT NOT NULL, -- when the workload was asked
    verdict        TEXT   NOT NULL, -- in, out, unsure
    confidence     BIGINT NOT NULL, -- per mille
    why            TEXT   NOT NULL, -- why it is unsure; '' else
    reason         TEXT   NOT NULL, -- the judge's; '' where it was withheld
    found          TEXT   NOT NULL, -- the event or attribute that the prompt stood in
    model          TEXT   NOT NULL,
    prompt_version TEXT   NOT NULL,
    scope_version  TEXT   NOT NULL,
    input_hash     TEXT   NOT NULL,
    tokens_in      BIGINT NOT NULL,
    tokens_out     BIGINT NOT NULL,
    prompt         TEXT            -- redacted; NULL unless configured
);
CREATE INDEX scope_verdicts_by_account ON scope_verdicts (org, account_id, id);
CREATE INDEX scope_verdicts_by_input ON scope_verdicts (org, account_id, input_hash, at);
CREATE INDEX scope_verdicts_by_at ON scope_verdicts (at);

-- One row a day for each account, and one for all with account_id ''.
CREATE TABLE scope_spend (
    day        BIGINT NOT NULL,
    account_id TEXT   NOT NULL,
    requests   BIGINT NOT NULL,
    tokens     BIGINT NOT NULL,
    micros     BIGINT NOT NULL,
    PRIMARY KEY (day, account_id)
);

-- What was seen and what became of it, per day.
CREATE TABLE scope_counts (
    org        TEXT   NOT NULL,
    account_id TEXT   NOT NULL,
    day        BIGINT NOT NULL,
    what       TEXT   NOT NULL,
    count      BIGINT NOT NULL,
    last_at    BIGINT NOT NULL,
    PRIMARY KEY (org, account_id, day, what)
);
CREATE INDEX scope_counts_by_day ON scope_counts (day);
