#!/usr/bin/env bash
# The ledger test at length: the edge is killed with -9 and started again so often, while brokers die, stand still and come back, files reach their limit and
# the spool fills. At the end every acknowledged record is in Kafka. SLUICE_LEDGER_SEED repeats the moments of a run.
#   ledger.sh [KILLS]     500, about half an hour
# It starts three brokers of its own, and PostgreSQL and Redis unless TEST_DATABASE_URL and TEST_REDIS_URL name some.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export TEST_SERVICES_SH=$PWD/.ci/services.sh SLUICE_REQUIRE_SERVICES=1 SLUICE_LEDGER_KILLS=${1:-500}
.ci/with-stores.sh go test -count=1 -timeout 2h -v -run '^TestLedger$' ./cmd/sluice
