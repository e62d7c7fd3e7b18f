#!/usr/bin/env bash
# Runs a command with TEST_DATABASE_URL and TEST_REDIS_URL: those that are set, else of a PostgreSQL and a Redis that end with it.
#   with-stores.sh COMMAND…
set -euo pipefail
if [ -z "${TEST_DATABASE_URL:-}" ] || [ -z "${TEST_REDIS_URL:-}" ]; then
  services=$(dirname "${BASH_SOURCE[0]}")/services.sh
  DIR=$(mktemp -d)
  chmod 711 "$DIR" # PostgreSQL runs as a user of its own and must get through
  export DIR
  trap '"$services" clean' EXIT
  "$services" start pg redis >"$DIR/started"
  # shellcheck disable=SC1091
  . "$DIR/env"
  export TEST_DATABASE_URL=$DATABASE_URL TEST_REDIS_URL=redis://$REDIS_ADDR
fi
"$@"
