#!/bin/sh
# Makes the passwords of compose.yaml, in deploy/secrets: run it once, before the first start. What is there is kept, since the databases know it.
#
# Each file is readable by all, because Compose mounts it as it is into containers whose users have other numbers; the directory is closed to others.
set -eu
cd "${1:-$(dirname "$0")}"
mkdir -p -m 700 secrets
cd secrets

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { # FILE: stdin becomes its content, unless it is there
  if [ ! -s "$1" ]; then
    cat >"$1"
    chmod 644 "$1"
  fi
}

random | keep postgres-password
random | keep redis-password
random | keep grafana-password
printf 'postgres://sluice:%s@postgres:5432/sluice?sslmode=disable' "$(cat postgres-password)" | keep postgres-url
printf 'redis://:%s@redis:6379/0' "$(cat redis-password)" | keep redis-url
# Redis is given the hash of its password only.
printf 'user default on #%s ~* &* +@all\n' "$(printf %s "$(cat redis-password)" | sha256sum | cut -d' ' -f1)" | keep redis-acl
echo "secrets are in $PWD"
