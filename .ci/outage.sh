#!/usr/bin/env bash
# Kills Kafka while the Python, Node.js and Go OpenTelemetry SDKs send, by every protocol that they speak, to an edge with a spool and to one without:
# behind a spool nothing may be lost, without one what is lost must be what the SDKs gave up and logged.
#   outage.sh [SECONDS]     how long Kafka is away; 30
# It starts a Kafka of its own, and PostgreSQL and Redis unless TEST_DATABASE_URL and TEST_REDIS_URL name some.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exporters=cmd/sluice/testdata/exporters
SLUICE_OUTAGE_PYTHON=$(.ci/python-packages.sh "$exporters/python/requirements.txt")
SLUICE_OUTAGE_NODE_MODULES=$(.ci/node-modules.sh "$exporters/node")
export SLUICE_OUTAGE_PYTHON SLUICE_OUTAGE_NODE_MODULES SLUICE_OUTAGE=${1:-30}s TEST_SERVICES_SH=$PWD/.ci/services.sh
.ci/with-stores.sh go test -count=1 -timeout 10m -v -run '^TestExportersRideThroughAnOutage$' ./cmd/sluice
