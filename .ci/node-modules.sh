#!/usr/bin/env bash
# node-modules.sh FOLDER: installs what FOLDER's package.json and package-lock.json list, once, into the cache, and prints
# the node_modules folder. No package's own script is run.
set -euo pipefail
lists=("$1/package.json" "$1/package-lock.json")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice-ci
node=$cache/node-$(cat "${lists[@]}" | sha256sum | cut -c1-16)
mkdir -p "$node"
exec 9>"$node.lock"
flock 9
if [ ! -f "$node/.complete" ]; then
  cp "${lists[@]}" "$node/"
  (cd "$node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2)
  touch "$node/.complete"
fi
echo "$node/node_modules"
