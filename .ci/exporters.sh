#!/usr/bin/env bash
# Sends with the Python and Node.js OpenTelemetry SDKs through `sluice dev`, and checks what arrives in Kafka with kcat.
#   exporters.sh [SLUICE]     the binary to try; built from this tree when it is not given
# What the SDKs need is installed into the cache, once per version of the lists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=1 # nothing is written into the tree
exporters=cmd/sluice/testdata/exporters
python=$(.ci/python-packages.sh "$exporters/python/requirements.txt")
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
"$python" "$exporters/check.py" "$sluice" "$work"
