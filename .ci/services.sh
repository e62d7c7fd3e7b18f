#!/usr/bin/env bash
# Real Kafka, PostgreSQL and Redis for the tests: on loopback, on free ports, without containers.
#
#   services.sh install                          Debian packages and Kafka jars that are missing
#   services.sh start  [kafka|pg|redis|kafkaN]…  start and wait until they answer; no name means all three
#   services.sh stop   [NAME]…                   stop in good order; the data stays
#   services.sh kill   [NAME]…                   SIGKILL, for tests of failure; `start NAME` brings it back with its data
#   services.sh status [NAME]…                   exit 0 when all of them answer
#   services.sh env                              what `start` printed
#   services.sh clean                            stop everything and remove DIR
#
# `start` prints and keeps in DIR/env what to connect to:
#   KAFKA_BROKERS DATABASE_URL REDIS_ADDR, with KAFKA_SECURE=1 also KAFKA_SASL KAFKA_SSL KAFKA_CA KAFKA_USER KAFKA_PASSWORD
#
# Environment:
#   DIR=path             data, logs, pid files and ports of one set of services; several sets run side by side
#   KAFKA_NODES=1|3      3: replication factor 3, min.insync.replicas 2, any one node (kafka1 to kafka3) may be killed
#   KAFKA_SECURE=1       adds SASL_PLAINTEXT and SASL_SSL listeners (PLAIN, SCRAM-SHA-256 and -512)
#   KAFKA_PORT PG_PORT REDIS_PORT    wanted ports; else free ones, kept in DIR/ports over restarts
#   KAFKA_EXTRA PG_EXTRA REDIS_EXTRA further settings: server.properties lines, `-c k=v`, `--k v`
#   KAFKA_HEAP KAFKA_JVM KAFKA_LIBS PGBIN
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kafka_version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/kafka/pom.xml")
DIR=${DIR:-${TMPDIR:-/tmp}/sluice-services-$(id -u)}
mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)
NODES=${KAFKA_NODES:-$(cat "$DIR/kafka.nodes" 2>/dev/null || echo 1)}
SECURE=${KAFKA_SECURE:-$(cat "$DIR/kafka.secure" 2>/dev/null || echo 0)}
LIBS=${KAFKA_LIBS:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice-ci/kafka-libs/$kafka_version}
# C1 and the serial collector: the broker is ready in half the CPU time, which is what tests wait for.
JVM=${KAFKA_JVM:--Xmx${KAFKA_HEAP:-512m} -Xms128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1}

say() { echo "services: $*" >&2; }
die() { say "$*"; exit 1; }

find_pgbin() { printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1; }
PGBIN=${PGBIN:-$(find_pgbin)}

# ------------------------------------------------------------------------------------------------ install

install() {
  local packages=()
  need() { command -v "$1" >/dev/null || packages+=("$2"); }
  need redis-server redis-server
  need java openjdk-17-jre-headless
  need mvn maven
  need openssl openssl
  need flock util-linux
  [ -x "$PGBIN/initdb" ] || packages+=(postgresql)
  if [ ${#packages[@]} -gt 0 ]; then "$here/apt-install.sh" "${packages[@]}"; fi
  kafka_libs
}

kafka_libs() {
  local jar=$LIBS/kafka_2.13-$kafka_version.jar
  [ ! -f "$jar" ] || return 0
  command -v mvn >/dev/null || die "no Kafka in $LIBS and no mvn to fetch it with: run services.sh install"
  mkdir -p "$LIBS"
  (
    flock 9
    [ ! -f "$jar" ] || exit 0
    say "fetching Kafka $kafka_version into $LIBS"
    rm -rf "$LIBS.part"
    mvn -q -B -Dstyle.color=never -f "$here/kafka/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$LIBS.part" >&2
    mv "$LIBS.part/${jar##*/}" "$LIBS.part/last"
    mv "$LIBS.part"/*.jar "$LIBS/"
    mv "$LIBS.part/last" "$jar" # last, so that its presence means that all are here
    rmdir "$LIBS.part"
  ) 9>"$LIBS.lock"
}

# ------------------------------------------------------------------------------------------------ ports and processes

# port NAME [WANTED]: the port kept for NAME, else WANTED, else a free one below the range that the kernel hands out
port() {
  local p=
  if [ -f "$DIR/ports" ]; then p=$(sed -n "s/^$1=//p" "$DIR/ports"); fi
  if [ -z "$p" ]; then
    p=${2:-}
    if [ -z "$p" ]; then
      for p in $(shuf -n 200 -i 20000-32000); do
        if ! grep -qs "=$p\$" "$DIR/ports" && ! listening "$p"; then break; fi
      done
    fi
    echo "$1=$p" >>"$DIR/ports"
  fi
  echo "$p"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# alive NAME: prints the pid in DIR/NAME.pid when that process is ours, since a pid may have been given to a stranger
alive() {
  local pid mark=$DIR/$1/
  [ "$1" != redis ] || mark=127.0.0.1:$(port REDIS) # redis rewrites its command line
  pid=$(cat "$DIR/$1.pid" 2>/dev/null) || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -- "$mark" && echo "$pid"
}

# running PID: it exists and is no zombie; pid 1 may take a second to reap an orphan
running() {
  local stat
  stat=$(cat "/proc/${1:-none}/stat" 2>/dev/null) && [[ $stat != *") Z "* ]]
}

# reap NAME SIGNAL SECONDS: signal it, wait for its end, SIGKILL after that time
reap() {
  local pid
  if pid=$(alive "$1"); then
    kill "-$2" "$pid" 2>/dev/null || true
    for _ in $(seq $(($3 * 20))); do
      running "$pid" || break
      sleep 0.05
    done
    if running "$pid"; then
      say "$1 ($pid) ignored SIG$2"
      kill -KILL "$pid" 2>/dev/null || true
      sleep 0.3
    fi
  fi
  rm -f "$DIR/$1.pid"
}

# ------------------------------------------------------------------------------------------------ Kafka

# kafka_listeners N: the listeners of node N that clients use
kafka_listeners() {
  local list
  list=PLAINTEXT://127.0.0.1:$(port "KAFKA$1")
  if [ "$SECURE" = 1 ]; then
    list+=,SASL_PLAINTEXT://127.0.0.1:$(port "KAFKA${1}_SASL"),SASL_SSL://127.0.0.1:$(port "KAFKA${1}_SSL")
  fi
  echo "$list"
}

kafka_certificates() {
  [ ! -s "$DIR/tls/server.pem" ] || return 0
  mkdir -p "$DIR/tls"
  (
    cd "$DIR/tls"
    local ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 "${ec[@]}" -keyout ca.key -out ca.pem -days 3650 -subj /CN=sluice-test-ca
    openssl req "${ec[@]}" -keyout server.key -out server.csr -subj /CN=localhost
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -out server.crt \
      -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1')
    cat server.key server.crt ca.pem >server.pem
  ) 2>/dev/null
}

# scram BITS BYTES: salted here, because a node that is given the plain password draws its own salt and the nodes then differ
scram() {
  local salted
  salted=$(openssl kdf -keylen "$2" -kdfopt "digest:SHA$1" -kdfopt pass:app-secret -kdfopt salt:testsalt -kdfopt iter:4096 -binary PBKDF2 | base64 -w0)
  echo "--add-scram=SCRAM-SHA-$1=[name=app,iterations=4096,salt=\"$(printf testsalt | base64)\",saltedpassword=\"$salted\"]"
}

kafka_properties() { # of node N
  local n=$1 i replicas=1 insync=1 voters='' listeners
  if [ "$NODES" -ge 3 ]; then replicas=3 insync=2; fi
  for i in $(seq "$NODES"); do voters+=${voters:+,}$i@127.0.0.1:$(port "KAFKA${i}_CTL"); done
  listeners=$(kafka_listeners "$n")
  cat <<P
process.roles=broker,controller
node.id=$n
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
listeners=$listeners,CONTROLLER://127.0.0.1:$(port "KAFKA${n}_CTL")
advertised.listeners=$listeners
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL
log.dirs=$DIR/kafka$n/data
auto.create.topics.enable=false
num.partitions=6
default.replication.factor=$replicas
min.insync.replicas=$insync
offsets.topic.replication.factor=$replicas
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$insync
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$insync
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=4194304
# failover in seconds, not tens of seconds
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1500
replica.lag.time.max.ms=5000
P
  if [ "$SECURE" = 1 ]; then
    cat <<P
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512,SCRAM-SHA-256
ssl.keystore.type=PEM
ssl.keystore.location=$DIR/tls/server.pem
ssl.client.auth=none
P
    local listener bits
    for listener in sasl_plaintext sasl_ssl; do
      echo "listener.name.$listener.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_app=\"app-secret\";"
      for bits in 256 512; do
        echo "listener.name.$listener.scram-sha-$bits.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;"
      done
    done
  fi
  printf '%s\n' "${KAFKA_EXTRA:-}"
}

kafka_configure() { # node N; formats its log directory the first time
  local d=$DIR/kafka$1 users=()
  mkdir -p "$d"
  if [ "$1" = 1 ]; then port KAFKA1 "${KAFKA_PORT:-}" >/dev/null; fi
  if [ "$SECURE" = 1 ]; then
    kafka_certificates
    users=("$(scram 512 64)" "$(scram 256 32)")
  fi
  kafka_properties "$1" >"$d/server.properties"
  [ ! -f "$d/data/meta.properties" ] || return 0
  java -cp "$LIBS/*" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format \
    -c "$d/server.properties" -t "$(cat "$DIR/kafka.cluster")" "${users[@]}" >"$d/format.log" 2>&1 ||
    { cat "$d/format.log" >&2; die "kafka$1: formatting its log directory failed"; }
}

kafka_launch() { # node N, without waiting
  local d=$DIR/kafka$1
  if alive "kafka$1" >/dev/null; then return; fi
  kafka_configure "$1"
  : >"$d/log"
  # shellcheck disable=SC2086 # JVM holds several options
  setsid java $JVM -XX:-UsePerfData -Djava.awt.headless=true \
    -Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS \
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaConfig=warn \
    -cp "$LIBS/*" kafka.Kafka "$d/server.properties" </dev/null >>"$d/log" 2>&1 &
  echo $! >"$DIR/kafka$1.pid"
}

kafka_ready() {
  grep -q 'Kafka Server started' "$DIR/kafka$1/log" 2>/dev/null && alive "kafka$1" >/dev/null && listening "$(port "KAFKA$1")"
}

kafka_wait() {
  for _ in $(seq 900); do
    if kafka_ready "$1"; then return; fi
    # running, not alive: right after the fork the command line is still bash's
    running "$(cat "$DIR/kafka$1.pid")" || break
    sleep 0.1
  done
  tail -30 "$DIR/kafka$1/log" >&2
  die "kafka$1 did not start"
}

# The kafka_* below take node numbers; none means all.
kafka_nodes() { if [ $# -gt 0 ]; then echo "$@"; else seq "$NODES"; fi; }

kafka_start() {
  local n
  kafka_libs
  echo "$NODES" >"$DIR/kafka.nodes"
  echo "$SECURE" >"$DIR/kafka.secure"
  [ -s "$DIR/kafka.cluster" ] || head -c16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=' | sed 's/^-/A/' >"$DIR/kafka.cluster"
  for n in $(kafka_nodes "$@"); do kafka_launch "$n"; done
  for n in $(kafka_nodes "$@"); do kafka_wait "$n"; done
}

kafka_stop() {
  local n pid
  for n in $(kafka_nodes "$@"); do # all at once: the last voter alone could not hand over and would wait
    if pid=$(alive "kafka$n"); then kill -TERM "$pid" 2>/dev/null || true; fi
  done
  for n in $(kafka_nodes "$@"); do reap "kafka$n" TERM 30; done
}

kafka_kill() { local n; for n in $(kafka_nodes "$@"); do reap "kafka$n" KILL 5; done; }

kafka_status() {
  local n
  for n in $(kafka_nodes "$@"); do kafka_ready "$n" || { say "kafka$n is down"; return 1; }; done
}

# ------------------------------------------------------------------------------------------------ PostgreSQL

as_postgres() { if [ "$(id -u)" = 0 ]; then (cd / && exec runuser -u postgres -- "$@"); else "$@"; fi; }

pg_pid() { head -1 "$DIR/pg/postmaster.pid" 2>/dev/null; }

pg_init() {
  local d=$DIR/pg
  [ ! -f "$d/PG_VERSION" ] || return 0
  rm -rf "$d"
  mkdir -p "$d"
  chmod 700 "$d"
  if [ "$(id -u)" = 0 ]; then chown postgres "$d"; fi
  as_postgres test -x "$d" || die "user postgres cannot reach $d: the folders above it need o+x"
  as_postgres "$PGBIN/initdb" -D "$d" -U postgres -A trust -E UTF8 --locale=C.UTF-8 -N >"$DIR/pg.init.log" 2>&1 ||
    { cat "$DIR/pg.init.log" >&2; die "initdb failed"; }
}

pg_start() {
  local options
  [ -x "$PGBIN/initdb" ] || die "no PostgreSQL server: run services.sh install"
  options="-p $(port PG "${PG_PORT:-}") -c listen_addresses=127.0.0.1 -c unix_socket_directories= ${PG_EXTRA:-}"
  pg_init
  if pg_status 2>/dev/null; then return; fi
  for _ in 1 2 3 4 5 6; do
    # A postmaster that was killed stays a zombie for a moment and keeps its lock file valid.
    for _ in $(seq 60); do
      if running "$(pg_pid)" || ! kill -0 "$(pg_pid)" 2>/dev/null; then break; fi
      sleep 0.05
    done
    if as_postgres "$PGBIN/pg_ctl" -D "$DIR/pg" -w -t 60 -s -l "$DIR/pg/server.log" -o "$options" start >"$DIR/pg.start.log" 2>&1; then
      return
    fi
    sleep 0.5
  done
  cat "$DIR/pg.start.log" >&2
  tail -20 "$DIR/pg/server.log" >&2
  die "PostgreSQL did not start"
}

pg_stop() { if running "$(pg_pid)"; then as_postgres "$PGBIN/pg_ctl" -D "$DIR/pg" -s -m fast -w stop || true; fi; }

pg_kill() { if running "$(pg_pid)"; then kill -KILL "$(pg_pid)"; fi; }

pg_status() {
  if "$PGBIN/pg_isready" -q -h 127.0.0.1 -p "$(port PG)" && running "$(pg_pid)"; then return; fi
  say "pg is down"
  return 1
}

# ------------------------------------------------------------------------------------------------ Redis

redis_start() {
  local d=$DIR/redis p
  p=$(port REDIS "${REDIS_PORT:-}")
  mkdir -p "$d"
  if redis_status 2>/dev/null; then return; fi
  # shellcheck disable=SC2086 # REDIS_EXTRA holds several options
  setsid redis-server --port "$p" --bind 127.0.0.1 --dir "$d" --save '' --appendonly no --daemonize no --logfile "$d/log" \
    ${REDIS_EXTRA:-} </dev/null >/dev/null 2>&1 &
  echo $! >"$DIR/redis.pid"
  for _ in $(seq 200); do
    if redis_status 2>/dev/null; then return; fi
    running $! || break
    sleep 0.05
  done
  tail -5 "$d/log" >&2
  die "Redis did not start"
}

redis_stop() { reap redis TERM 10; }
redis_kill() { reap redis KILL 5; }

redis_status() {
  if alive redis >/dev/null && [ "$(redis-cli -h 127.0.0.1 -p "$(port REDIS)" ping 2>/dev/null)" = PONG ]; then return; fi
  say "redis is down"
  return 1
}

# ------------------------------------------------------------------------------------------------ commands

started() { case $1 in kafka) [ -d "$DIR/kafka1" ] ;; *) [ -d "$DIR/$1" ] ;; esac; }

# brokers [SUFFIX]: host:port of every node's listener
brokers() { local n list=; for n in $(seq "$NODES"); do list+=${list:+,}127.0.0.1:$(port "KAFKA$n${1:-}"); done; echo "$list"; }

write_env() {
  {
    if started kafka; then
      echo "export KAFKA_BROKERS=$(brokers)"
      if [ "$SECURE" = 1 ]; then
        echo "export KAFKA_SASL=$(brokers _SASL) KAFKA_SSL=$(brokers _SSL) KAFKA_CA=$DIR/tls/ca.pem KAFKA_USER=app KAFKA_PASSWORD=app-secret"
      fi
    fi
    if started pg; then echo "export DATABASE_URL=postgres://postgres@127.0.0.1:$(port PG)/postgres?sslmode=disable"; fi
    if started redis; then echo "export REDIS_ADDR=127.0.0.1:$(port REDIS)"; fi
  } >"$DIR/env.part"
  mv "$DIR/env.part" "$DIR/env"
}

# each COMMAND NAME…: the daemons that it starts must not inherit the lock, hence 8>&-. Never call it where a failure is
# handled (if, ||): bash would then go on after every failing line inside.
each() {
  local command=$1 name
  shift
  for name in "$@"; do
    case $name in
      kafka[1-9]) "kafka_$command" "${name#kafka}" 8>&- ;;
      kafka | pg | redis) "${name}_$command" 8>&- ;;
      *) die "there is no service $name" ;;
    esac
  done
}

command=${1:-}
shift || true
names=("$@")
if [ ${#names[@]} = 0 ]; then
  for name in kafka pg redis; do
    if [ "$command" = start ] || started "$name"; then names+=("$name"); fi
  done
fi

exec 8>"$DIR/.lock"
flock 8
case $command in
  install) install ;;
  start)
    each start "${names[@]}"
    write_env
    cat "$DIR/env"
    ;;
  stop | kill) each "$command" "${names[@]}" ;;
  status)
    [ ${#names[@]} -gt 0 ] || die "nothing was started in $DIR"
    each status "${names[@]}"
    cat "$DIR/env"
    ;;
  env) cat "$DIR/env" ;;
  clean)
    each stop "${names[@]}"
    rm -rf "$DIR"
    ;;
  *)
    sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed '/^set /d; s/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
