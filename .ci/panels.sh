#!/usr/bin/env bash
# Asks every query of the Grafana dashboards of a real Prometheus that watches a real `sluice serve` under load, and fails where a panel would be empty.
#   panels.sh [SECONDS [DIR]]     how long there is load; 60. Into DIR it draws each dashboard, from the data of the run
# In that time keys are made and revoked, signals filtered, records refused and invalid, a letter is dead, prompts judged, the certificate is renewed, Kafka goes away
# for a quarter of it, so that the spool fills and drains, and the process is started anew. It starts a Kafka, a PostgreSQL and a Redis of its own.
#   PROMETHEUS=path         a prometheus to use instead of building the one that deploy/tools/prometheus pins
#   SLUICE=path             a sluice to use instead of building one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}
pictures=${2:-}
export PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d)
chmod 711 "$work" # PostgreSQL runs as a user of its own and must get through
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  services clean >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT
services() { DIR=$work/services .ci/services.sh "$@"; }
fail() {
  echo "$*"
  tail -n 20 "$work/serve.log" "$work/prometheus.log" 2>/dev/null || true
  exit 1
}
awaiting() { # WHAT COMMAND…: until it succeeds, for two minutes, or until what was started last has ended
  for _ in $(seq 1200); do
    if "${@:2}" >/dev/null 2>&1; then return; fi
    kill -0 "${pids[-1]}" || break
    sleep 0.1
  done
  fail "$1: it does not come"
}

sluice=${SLUICE:-$work/sluice}
if [ -z "${SLUICE:-}" ]; then go build -o "$sluice" ./cmd/sluice; fi
prometheus=${PROMETHEUS:-$work/prometheus}
if [ -z "${PROMETHEUS:-}" ]; then (cd deploy/tools/prometheus && go build -tags remove_all_sd -o "$prometheus" github.com/prometheus/prometheus/cmd/prometheus); fi
services start >/dev/null
# shellcheck disable=SC1091
. "$work/services/env"
export SLUICE_POSTGRES_URL=$DATABASE_URL SLUICE_REDIS_URL=redis://$REDIS_ADDR SLUICE_KAFKA_BROKERS=$KAFKA_BROKERS SLUICE_ORG=panels
read -r edge grpc admin ops web < <(python3 -c '
import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
print(*[x.getsockname()[1] for x in s])')

certificate() { # NAME
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
    -keyout "$work/$1.key" -out "$work/$1.pem" 2>/dev/null
}
certificate tls
certificate renewed
cat "$work/tls.pem" "$work/renewed.pem" >"$work/ca.pem"
python3 .ci/panels.py judge "$work/judge" &
pids+=($!)
awaiting 'the judge' test -s "$work/judge"

"$sluice" migrate --partitions 4 >"$work/migrate.log" 2>&1 || fail "$(cat "$work/migrate.log")"
serve() {
  "$sluice" serve --edge-addr "127.0.0.1:$edge" --grpc-addr "127.0.0.1:$grpc" --admin-addr "127.0.0.1:$admin" --ops-addr "127.0.0.1:$ops" --drain-delay 0s \
    --spool-dir "$work/spool" --tls-cert "$work/tls.pem" --tls-key "$work/tls.key" \
    --judge-url "http://127.0.0.1:$(cat "$work/judge")/v1" --judge-model scripted --judge-sample 1 >>"$work/serve.log" 2>&1 &
  server=$!
  pids+=("$server")
  awaiting 'sluice serve' curl -fsS "http://127.0.0.1:$ops/readyz"
}
serve
field() { python3 -c 'import functools, json, sys; print(functools.reduce(lambda o, k: o[k], sys.argv[1].split("."), json.load(sys.stdin)))' "$1"; }
account() { "$sluice" accounts create --org panels --name "$1" --environment production --json "${@:2}"; }
key=$(account worker --intended-scope 'Summarises support tickets about billing, invoices and refunds in German and English' | field key)
leaked=$(account leaked)
revoked=$(field key <<<"$leaked")
token=$("$sluice" tokens create --org panels --permission SETTINGS_INTEGRATIONS_UPDATE,AI_GOVERNANCE_VIEW --json | field token)

sed -e 's/15s/1s/' -e "s/sluice:9318/127.0.0.1:$ops/" -e "s/localhost:9090/127.0.0.1:$web/" deploy/prometheus/prometheus.yaml >"$work/prometheus.yaml"
cp deploy/prometheus/rules.yaml deploy/prometheus/alerts.yaml "$work/"
"$prometheus" --config.file="$work/prometheus.yaml" --storage.tsdb.path="$work/tsdb" --web.listen-address="127.0.0.1:$web" >"$work/prometheus.log" 2>&1 &
pids+=($!)
awaiting 'Prometheus' curl -fsS "http://127.0.0.1:$web/-/ready"

since=$SECONDS
start=$(date +%s)
part() { while [ $((SECONDS - since)) -lt $((seconds * $1 / 8)) ]; do sleep 0.2; done; } # N: until N eighths of the time are over
python3 .ci/panels.py load "https://127.0.0.1:$edge" "$work/ca.pem" "$key" "$revoked" >"$work/load.log" &
load=$!
pids+=("$load")
part 1
cp "$work/renewed.key" "$work/tls.key"
cp "$work/renewed.pem" "$work/tls.pem" # noticed within ten seconds
account newcomer >/dev/null
echo 'not an event' | kcat -P -b "$KAFKA_BROKERS" -t ai_signals
"$sluice" accounts delete leaked/production --yes >/dev/null
curl -fsS -o /dev/null -H "Authorization: Bearer $token" "http://127.0.0.1:$admin/api/v1/service-accounts"
part 2
curl -fsS -o /dev/null -H "Authorization: Bearer $token" "http://127.0.0.1:$admin/api/v1/service-accounts"
services kill kafka 2>/dev/null
part 4
services start kafka >/dev/null 2>&1
awaiting 'the spool is drained' sh -c "curl -fsS http://127.0.0.1:$ops/metrics | grep -qx 'sluice_spool_records 0'"
part 6
kill "$server"
wait "$server" || true
serve
part 8
kill "$load"
wait "$load" || true
cat "$work/load.log"
if [ -n "$pictures" ]; then mkdir -p "$pictures"; fi
python3 .ci/panels.py ask "http://127.0.0.1:$web" "$start" "$pictures" deploy/grafana/dashboards/*.json deploy/docs/*.md
