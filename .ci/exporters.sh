#!/usr/bin/env bash
# Sends with the Python and Node.js OpenTelemetry SDKs through `sluice dev`, and checks what arrives in Kafka with kcat.
#   exporters.sh [SLUICE]     the binary to try; built from this tree when it is not given
# What the SDKs need is installed into the cache, once per version of the lists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=1 # nothing is written into the tree
exporters=cmd/sluice/testdata/exporters
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice-ci

mkdir -p "$cache"
python=$cache/python-$(sha256sum <"$exporters/python/requirements.txt" | cut -c1-16)
(
  flock 9
  if [ ! -f "$python/.complete" ]; then
    python3 -m venv --clear "$python"
    "$python/bin/python" -m pip install -q --no-deps -r "$exporters/python/requirements.txt"
    touch "$python/.complete"
  fi
) 9>"$python.lock"
node_modules=$(.ci/node-modules.sh "$exporters/node")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sluice=${1:-}
if [ -z "$sluice" ]; then
  sluice=$work/sluice
  go build -o "$sluice" ./cmd/sluice
fi
cp "$exporters/node/workload.js" "$work/"
ln -s "$node_modules" "$work/node_modules"
"$python/bin/python" "$exporters/check.py" "$sluice" "$work"
