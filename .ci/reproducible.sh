#!/usr/bin/env bash
# Builds the release of the commit that is checked out twice, from two clones in different directories, the second with an empty build cache, and compares.
# TARGETS as for deploy/release.sh; linux/amd64 unless said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export TARGETS=${TARGETS:-linux/amd64}
work=$(mktemp -d)
finish() {
  chmod -R u+w "$work"
  rm -rf "$work"
}
trap finish EXIT

git clone -q --no-hardlinks . "$work/one"
git clone -q --no-hardlinks . "$work/another/place"
"$work/one/deploy/release.sh" 0.0.0 "$work/dist-one" >/dev/null
GOCACHE=$work/cache "$work/another/place/deploy/release.sh" 0.0.0 "$work/dist-two" >/dev/null
if ! diff -u "$work/dist-one/SHA256SUMS" "$work/dist-two/SHA256SUMS"; then
  echo "two builds of one commit differ" >&2
  exit 1
fi
cat "$work/dist-one/SHA256SUMS"
