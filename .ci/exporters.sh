#!/usr/bin/env bash
# Sends with the Python and Node.js OpenTelemetry SDKs through `sluice dev`, and checks what arrives in Kafka with kcat.
#   exporters.sh [SLUICE]     the binary to try; built from this tree when it is not given
# What the SDKs need is installed into the cache, once per version of the lists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=1 # nothing is written into the tree
exporters=cmd/sluice/testdata/exporters
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice-ci

# folder NAME FILE…: where the packages that these files list are kept; .complete in it says that the install has finished
folder() { echo "$cache/$1-$(cat "${@:2}" | sha256sum | cut -c1-16)"; }

mkdir -p "$cache"
exec 9>"$cache/exporters.lock"
flock 9

python=$(folder python "$exporters/python/requirements.txt")
if [ ! -f "$python/.complete" ]; then
  python3 -m venv --clear "$python"
  "$python/bin/python" -m pip install -q --no-deps -r "$exporters/python/requirements.txt"
  touch "$python/.complete"
fi

node=$(folder node "$exporters/node/package.json" "$exporters/node/package-lock.json")
if [ ! -f "$node/.complete" ]; then
  mkdir -p "$node"
  cp "$exporters/node/package.json" "$exporters/node/package-lock.json" "$node/"
  (cd "$node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
  touch "$node/.complete"
fi
exec 9>&-

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sluice=${1:-}
if [ -z "$sluice" ]; then
  sluice=$work/sluice
  go build -o "$sluice" ./cmd/sluice
fi
cp "$exporters/node/workload.js" "$work/"
ln -s "$node/node_modules" "$work/node_modules"
"$python/bin/python" "$exporters/check.py" "$sluice" "$work"
