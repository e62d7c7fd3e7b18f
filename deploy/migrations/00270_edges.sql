-- How long an edge that is cut off serves what it knows, so that a revocation counts it for that long.

-- +goose Up

-- The default stands for edges of the release before, which do not say: it is that of --auth-max-stale.
ALTER TABLE edges ADD COLUMN max_stale_us BIGINT NOT NULL DEFAULT 900000000;
