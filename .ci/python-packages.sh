#!/usr/bin/env bash
# python-packages.sh REQUIREMENTS: installs what the list names, once, into the cache, and prints the Python that has it.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice-ci
python=$cache/python-$(sha256sum <"$1" | cut -c1-16)
mkdir -p "$cache"
exec 9>"$python.lock"
flock 9
if [ ! -f "$python/.complete" ]; then
  python3 -m venv --clear "$python" >&2
  "$python/bin/python" -m pip install -q --no-deps -r "$1" >&2
  touch "$python/.complete"
fi
echo "$python/bin/python"
