#!/usr/bin/env bash
# What no compiler looks at: what the repository's files may not hold, whoever wrote them. Names every offence, then fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
most_bytes=$((1024 * 1024)) # of one file: what is larger is a build product or wants compressing
failed=0

offence() { # TITLE LINES: fails when there are lines
  if [ -n "$2" ]; then
    printf '%s:\n%s\n' "$1" "$2" >&2
    failed=1
  fi
}

# found REGEX: the lines of text files that match. Each expression below is written so that it does not match itself.
found() { git grep -nIE -e "$1" -- . ':!*.sum' ':!**/testdata/fuzz/**' || true; }

offence "a path of one machine" "$(found '(^|[^[:alnum:]_.$}/-])/(wor[k]|roo[t])/')"
offence "a package registry's host, which its client knows" \
  "$(found 'proxy\.gola[n]g|\<pypi\.or[g]|pythonhoste[d]\.|registry\.npmj[s]|repo1?\.mave[n]|deb\.debia[n]')"
offence "a note to oneself: do it, or file it" "$(found '\<(TOD[O]|FIXM[E]|XX[X])\>')"
offence "a conflict marker" "$(found '^(<{7}|>{7}) ')"

# --numstat against the empty tree shows `-` for binary files. Pictures, fonts and what real clients sent are meant to be here.
empty=$(git hash-object -t tree /dev/null)
offence "a binary file" "$(git diff --numstat "$empty" HEAD | awk -F '\t' '$1 == "-" { print $3 }' | grep -vE '\.(png|ico|woff2)$|/testdata/clients/[^/]+\.pb$' || true)"
offence "a file over $most_bytes bytes" "$(git ls-tree -rl HEAD | awk -v most="$most_bytes" '$4 + 0 > most { print $5, $4 }')"

offence "a package without a doc comment" "$(go list -f '{{if and .GoFiles (not .Doc)}}{{.ImportPath}}{{end}}' ./...)"
if ! tidy=$(go mod tidy -diff); then
  offence "go.mod differs from what the packages import: go mod tidy" "$(grep '^[-+]' <<<"$tidy" | head -20 || true)"
  failed=1
fi

offence "a shell script with a syntax error" "$(git ls-files '*.sh' .ci/run .ci/full | while read -r script; do bash -n "$script" 2>&1; done)"

exit $failed
