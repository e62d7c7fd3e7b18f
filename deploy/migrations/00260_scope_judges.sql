-- Who judges telemetry against intended scopes, said by each such process of itself every few seconds; who stops removes its row. In the subset of SQL that
-- PostgreSQL and SQLite share. Times are BIGINT unix milliseconds.

-- +goose Up

CREATE TABLE scope_judges (
    id       TEXT   NOT NULL PRIMARY KEY, -- of the process, new with each start
    since    BIGINT NOT NULL,
    seen_at  BIGINT NOT NULL,
    away     BIGINT NOT NULL, -- 1: its judge does not answer
    settings TEXT   NOT NULL  -- JSON: model, shares, budgets
);
