-- Alerts counted by the hour, so that a chart of a month reads some thousand rows and not every alert.

-- +goose Up

-- Whoever writes alerts writes this in the same transaction, after them and in the order of its key.
CREATE TABLE alert_hours (
    org         TEXT    NOT NULL,
    hour        BIGINT  NOT NULL, -- of detected_at, since 1970
    severity    TEXT    NOT NULL,
    open        BOOLEAN NOT NULL,
    category    TEXT    NOT NULL,
    type        TEXT    NOT NULL,
    environment TEXT    NOT NULL,
    n           BIGINT  NOT NULL,
    PRIMARY KEY (org, hour, severity, open, category, type, environment)
);
INSERT INTO alert_hours (org, hour, severity, open, category, type, environment, n)
    SELECT org, detected_at / 3600000, severity, open, category, type, environment, COUNT(*) FROM alerts
    GROUP BY org, detected_at / 3600000, severity, open, category, type, environment;
