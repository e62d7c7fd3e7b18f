#!/usr/bin/env bash
# Builds a release from the commit that is checked out: one static binary for each target, what is in each (CycloneDX), and SHA256SUMS.
#
#   deploy/release.sh VERSION [DIR]      e.g. deploy/release.sh 0.1.0; DIR is dist
#
#   TARGETS="linux/amd64 linux/arm64"    only these
#   SBOM=0                               without the lists of contents, which need the module of deploy/tools/sbom
#
# The same commit and the same Go give the same bytes, in whatever directory and on whatever machine: .ci/reproducible.sh holds it to that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:?usage: deploy/release.sh VERSION [DIR]}
dist=${2:-dist}
if ! [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]]; then
  echo "release.sh: $version is not MAJOR.MINOR.PATCH" >&2
  exit 2
fi
if [ -n "$(git status --porcelain)" ]; then
  echo "release.sh: there are changes that are not committed, and a release is of a commit" >&2
  exit 2
fi
commit=$(git rev-parse HEAD)
date=$(TZ=UTC0 git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd)
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)

# What a shell may have set and would change the bytes.
unset GOFLAGS GOEXPERIMENT GOAMD64 GOARM64 CGO_CFLAGS CGO_LDFLAGS
export CGO_ENABLED=0

files=()
for target in ${TARGETS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64}; do
  name=sluice_${version}_${target/\//_}
  echo "release.sh: $name"
  # The commit comes by -X, so that an export of it without .git is the same.
  GOOS=${target%/*} GOARCH=${target#*/} go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=$version -X main.commit=$commit -X main.date=$date" -o "$dist/$name" ./cmd/sluice
  files+=("$name")
  if [ "${SBOM:-1}" = 1 ]; then
    # From the binary, which says what was linked; without a serial number and a time, which would differ.
    go tool -modfile=deploy/tools/sbom/go.mod cyclonedx-gomod bin -json -noserial -notimestamp -version "v$version" -output "$dist/$name.cdx.json" "$dist/$name"
    files+=("$name.cdx.json")
  fi
done
(cd "$dist" && sha256sum "${files[@]}" >SHA256SUMS)
cat "$dist/SHA256SUMS"
