#!/usr/bin/env bash
# Runs the consumers of deploy/docs/consumer against `sluice dev`: each prints a signal once, although it was sent twice, and passes by what is no event.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=1
requirements=deploy/docs/consumer/requirements.txt
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice-ci
python=$cache/consumer-$(sha256sum <"$requirements" | cut -c1-16)
mkdir -p "$cache"
(
  flock 9
  if [ ! -f "$python/.complete" ]; then
    python3 -m venv --clear "$python"
    "$python/bin/python" -m pip install -q -r "$requirements"
    touch "$python/.complete"
  fi
) 9>"$cache/consumer.lock"

work=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$work"
}
trap finish EXIT

go build -o "$work/" ./cmd/sluice ./deploy/docs/consumer
"$work/sluice" dev --json --data-dir "$work/data" --edge-addr 127.0.0.1:0 --grpc-addr 127.0.0.1:0 --admin-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0 \
  --kafka-addr 127.0.0.1:0 >"$work/dev.json" 2>"$work/dev.log" &
pids+=($!)
until [ -s "$work/dev.json" ]; do
  kill -0 "${pids[0]}" || { cat "$work/dev.log"; exit 1; }
  sleep 0.1
done
field() { "$python/bin/python" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/dev.json" "$1"; }
broker=$(field kafka)
"$python/bin/python" - "$broker" <<'PYTHON'
import sys
from confluent_kafka import Producer
producer = Producer({"bootstrap.servers": sys.argv[1]})
for partition in range(len(producer.list_topics("ai_signals").topics["ai_signals"].partitions)):
    for value in (b"no JSON", b"{}", b"[1]", b"null", b'{"id":[]}', b'{"id":"sig_1","org":"acme"}', b'{"id":"x","severity":1,"type":2,"subject":"me"}', None):
        producer.produce("ai_signals", value, "acme", partition=partition)
if producer.flush(20):
    sys.exit("the poison was not written")
PYTHON
for _ in 1 2; do
  curl --fail-with-body -sS -H "x-flowstate-key: $(field key)" --json '{"type":"forecast_breach","id":"run-42"}' "$(field edge)/v1/signals" >/dev/null
done
"$work/consumer" "$broker" >"$work/go.out" 2>"$work/go.err" &
pids+=($!)
"$python/bin/python" deploy/docs/consumer/consumer.py "$broker" >"$work/python.out" 2>"$work/python.err" &
pids+=($!)
want='WARN forecast_breach - service: nightly-digest-summariser / production'
for name in go python; do
  for _ in $(seq 300); do
    if grep -qxF "$want" "$work/$name.out"; then break; fi
    sleep 0.1
  done
done
# One more signal is the event that says both copies of the first have been read.
curl --fail-with-body -sS -H "x-flowstate-key: $(field key)" --json '{"type":"wasteful_prompting","id":"run-43"}' "$(field edge)/v1/signals" >/dev/null
for name in go python; do
  for _ in $(seq 300); do
    if grep -q wasteful_prompting "$work/$name.out"; then break; fi
    sleep 0.1
  done
  if [ "$(grep -cxF "$want" "$work/$name.out")" != 1 ] || ! grep -q wasteful_prompting "$work/$name.out"; then
    echo "the $name consumer printed:"
    cat "$work/$name.out" "$work/$name.err"
    exit 1
  fi
  if [ "$(wc -l <"$work/$name.out")" != 2 ] || ! grep -q 'is not an event' "$work/$name.err"; then
    echo "the $name consumer took what is no event for one, or did not say so:"
    cat "$work/$name.out" "$work/$name.err"
    exit 1
  fi
  echo "ok   the $name consumer"
done
