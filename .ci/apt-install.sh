#!/usr/bin/env bash
# apt-install.sh PACKAGE…: installs Debian packages without starting the daemons that they bring.
set -euo pipefail

if [ "$(id -u)" != 0 ]; then
  echo "missing here, and installing needs root: apt-get install $*" >&2
  exit 1
fi
exec 9>"${TMPDIR:-/tmp}/sluice-apt.lock"
flock 9 # two installs at once would fail on dpkg's own lock

# PostgreSQL's package would create and start a cluster of its own; ours are made by services.sh.
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
  mkdir -p /etc/postgresql-common
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi

apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
