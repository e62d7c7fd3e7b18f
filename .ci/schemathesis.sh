#!/usr/bin/env bash
# Validates the OpenAPI document that `sluice dev` serves, then has a fuzzer make requests of it: no answer may be a 500, or one that the document does not describe.
#   schemathesis.sh [SLUICE]     the binary to try; built from this tree when it is not given
#   FUZZ_API_SECONDS=60          how long the fuzzer runs
# What it needs is installed into the cache, once per version of the list.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=1 # nothing is written into the tree
requirements=$PWD/.ci/openapi/requirements.txt
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice-ci

mkdir -p "$cache"
exec 9>"$cache/openapi.lock"
flock 9
python=$cache/openapi-$(sha256sum <"$requirements" | cut -c1-16)
if [ ! -f "$python/.complete" ]; then
  python3 -m venv --clear "$python"
  "$python/bin/python" -m pip install -q --no-deps -r "$requirements"
  touch "$python/.complete"
fi
exec 9>&-

work=$(mktemp -d)
pid=
finish() {
  local status=$?
  trap - EXIT
  if [ -n "$pid" ]; then
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  fi
  if [ $status != 0 ]; then grep -s '"level":"ERROR"' "$work/log" | tail -20 || true; fi
  rm -rf "$work"
  exit $status
}
trap finish EXIT

sluice=${1:-}
if [ -z "$sluice" ]; then
  sluice=$work/sluice
  go build -o "$sluice" ./cmd/sluice
fi
sluice=$(realpath "$sluice")
cd "$work"
any=127.0.0.1:0
"$sluice" dev --data-dir data --json --log-level info --log-format json \
  --edge-addr $any --grpc-addr $any --admin-addr $any --ops-addr $any --kafka-addr $any >ready 2>log &
pid=$!
for _ in $(seq 300); do
  if [ -s ready ]; then break; fi
  if ! kill -0 "$pid" 2>/dev/null; then
    cat log
    exit 1
  fi
  sleep 0.2
done
member() { "$python/bin/python" -c 'import json, sys; print(json.load(open("ready"))[sys.argv[1]])' "$1"; }
admin=$(member admin)
token=$(member admin_token)

# Something to find.
curl -sS --fail-with-body "$(member edge)/v1/signals" -H 'content-type: application/json' -H "x-flowstate-key: $(member key)" \
  -d '[{"type":"forecast_breach"},{"type":"prompt_injection"},{"type":"personal_use_company_account"}]' >/dev/null

curl -sS --fail "$admin/api/v1/openapi.json" >openapi.json
"$python/bin/openapi-spec-validator" --schema 3.1 openapi.json

# Left out: whether the schemas alone tell good input from bad (negative_data_rejection, positive_data_acceptance: names are unique, times and
# conditions have grammars), and whether what was deleted is 404 (use_after_free, ensure_resource_availability: a deleted account can still be read).
"$python/bin/schemathesis" run openapi.json --url "$admin" -H "Authorization: Bearer $token" \
  --checks all --exclude-checks negative_data_rejection,positive_data_acceptance,use_after_free,ensure_resource_availability \
  --max-time "${FUZZ_API_SECONDS:-60}" --request-timeout 15 --continue-on-failure --no-shrink --warnings off >report 2>&1 || {
  tail -n 200 report | cut -c1-600
  exit 1
}
grep -E '^ .* generated|^Seed|No test cases' report
if grep -q 'No test cases were generated' report; then
  tail -n 200 report | cut -c1-600
  exit 1
fi
if ! kill -0 "$pid" 2>/dev/null; then
  echo 'sluice dev has ended:'
  tail -50 log
  exit 1
fi
