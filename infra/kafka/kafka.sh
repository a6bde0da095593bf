#!/usr/bin/env bash
# Runs a real Apache Kafka (KRaft, no ZooKeeper) on loopback, from Maven Central's jars. For tests, benchmarks and the demo.
#
#   kafka.sh fetch                            the jars (once; start does it too)
#   kafka.sh start [N] --dir D [options]      N combined broker+controller nodes (1 or 3 ...); prints bootstrap servers
#        --ports P1,C1[,P2,C2...]          broker and controller port of each node; random free ones if not given
#        --heap 512m                       -Xms/-Xmx of each JVM
#        --set key=value                   one more line of server.properties (repeatable)
#        --owner PID                       stop and --wipe by itself once this process is gone
#        --sasl                            clients log in (SASL_PLAINTEXT, SCRAM-SHA-256) and may do what ACLs allow; the user
#                                          admin, whose password is in D/admin.properties, may do all
#        --user NAME:PASSWORD              one more user, with --sasl (repeatable)
#   kafka.sh restart NODE --dir D             starts one node that was killed or stopped
#   kafka.sh stop [NODE] --dir D [--wipe]     SIGTERM all (or one), SIGKILL after 30 s; --wipe removes D
#   kafka.sh kill NODE --dir D                SIGKILL one node (failure tests)
#   kafka.sh status --dir D                   pid, ports, RSS of each node
#   kafka.sh tool CLASS --dir D ARGS...       one of Kafka's own tools (e.g. TopicCommand --list; another
#                                          package's with its whole name) against this cluster
#
# Idempotent: start on a running cluster only prints its servers; on a stopped one it restarts it with the same
# ports, cluster id and data; stop on a stopped one does nothing. All state is under D, the jars and a class-data archive
# (which halves the start) under LONGSHORE_CACHE. KAFKA_MVN_ARGS goes to Maven, KAFKA_JVM_ARGS to each broker.
set -euo pipefail
KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VERSION=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$KIT/pom.xml")
LIB="${LONGSHORE_CACHE:-$HOME/.cache/longshore}/kafka/$VERSION"
die() { echo "kafka: $*" >&2; exit 1; }

fetch() {
  [ -f "$LIB/.complete" ] && return
  command -v java >/dev/null && command -v mvn >/dev/null || die "java (17 or newer) and mvn are needed: infra/setup.sh kafka"
  mkdir -p "$LIB"
  exec 9>"$LIB/.lock"
  flock 9
  [ -f "$LIB/.complete" ] && return
  echo "kafka: fetching Kafka $VERSION from Maven Central" >&2
  mvn -q -B -f "$KIT/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$LIB" ${KAFKA_MVN_ARGS:-} >&2
  touch "$LIB/.complete"
  exec 9>&-
}

free_ports() { # $1 free ports below the ephemeral range, so that no outgoing connection takes one while a node is down
  python3 - "$1" <<'PY'
import random, socket, sys
held = []
while len(held) < int(sys.argv[1]):
    s = socket.socket()
    try: s.bind(("127.0.0.1", random.randrange(15000, 32000))); held.append(s)
    except OSError: s.close()
print(",".join(str(s.getsockname()[1]) for s in held))
PY
}

alive() { # is node $1's process ours and running?
  local pid; pid=$(cat "$DIR/node$1/pid" 2>/dev/null) || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$DIR/node$1/server.properties"
}
nodes() { cat "$DIR/nodes" 2>/dev/null || echo 0; }
port() { cut -d, -f$((2 * $1 - 1)) "$DIR/ports"; }
cport() { cut -d, -f$((2 * $1)) "$DIR/ports"; }
bootstrap() { local i s=; for i in $(seq "$(nodes)"); do s+=,127.0.0.1:$(port "$i"); done; echo "${s#,}"; }

passwords() { # who may log in: the brokers and tools as admin, and those that were asked for
  [ ! -f "$DIR/users" ] || return 0
  local password; password=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
  (umask 077; printf '%s\n' "admin:$password" "${USERS[@]}" >"$DIR/users"; login admin "$password" >"$DIR/admin.properties")
}
login() { # a Java client's properties for user $1
  printf '%s\n' security.protocol=SASL_PLAINTEXT sasl.mechanism=SCRAM-SHA-256 \
    "sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username=\"$1\" password=\"$2\";"
}
# The same listener, but with a login; what comes later in the file counts. Controllers talk on a port of their own, as nobody.
secured() {
  printf '%s\n' listener.security.protocol.map=PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT \
    sasl.enabled.mechanisms=SCRAM-SHA-256 sasl.mechanism.inter.broker.protocol=SCRAM-SHA-256 \
    authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer \
    'super.users=User:admin;User:ANONYMOUS'
  sed -n 's/^sasl.jaas.config/listener.name.plaintext.scram-sha-256.&/p' "$DIR/admin.properties"
}

prepare() { # writes the configuration and formats the storage of N nodes, once
  local n=$1 i voters= rf minisr users name password
  mkdir -p "$DIR"
  [ -z "$SASL" ] || passwords
  [ -f "$DIR/ports" ] || echo "${PORTS:-$(free_ports $((2 * n)))}" >"$DIR/ports"
  [ "$(tr , '\n' <"$DIR/ports" | wc -l)" -eq $((2 * n)) ] || { rm "$DIR/ports"; die "--ports: two for each node"; }
  # An id that began with a dash would be taken for an option.
  [ -f "$DIR/cluster-id" ] ||
    head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n' | sed 's/^-/L/' >"$DIR/cluster-id"
  rf=$((n < 3 ? n : 3)); minisr=$((n < 3 ? 1 : 2))
  for i in $(seq "$n"); do voters+=,$i@127.0.0.1:$(cport "$i"); done
  for i in $(seq "$n"); do
    mkdir -p "$DIR/node$i"
    sed -e "s#@ID@#$i#; s#@VOTERS@#${voters#,}#; s#@PORT@#$(port "$i")#; s#@CPORT@#$(cport "$i")#" \
      -e "s#@DATA@#$DIR/node$i/data#; s#@RF@#$rf#; s#@MINISR@#$minisr#" \
      "$KIT/server.properties.in" >"$DIR/node$i/server.properties"
    [ ! -f "$DIR/admin.properties" ] || secured >>"$DIR/node$i/server.properties"
    printf '%s\n' "${SETS[@]}" >>"$DIR/node$i/server.properties"
  done
  users=()
  [ ! -f "$DIR/users" ] || while IFS=: read -r name password; do
    users+=(--add-scram "SCRAM-SHA-256=[name=$name,password=$password]")
  done <"$DIR/users"
  for i in $(seq "$n"); do
    [ -f "$DIR/node$i/data/meta.properties" ] || java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC \
      -Dlog4j2.configurationFile="$KIT/log4j2.properties" -cp "$LIB/*" kafka.tools.StorageTool \
      format "${users[@]}" -t "$(cat "$DIR/cluster-id")" -c "$DIR/node$i/server.properties" >"$DIR/node$i/format.log" 2>&1 ||
      { tail -5 "$DIR/node$i/format.log" >&2; die "node $i could not be formatted"; }
  done
  echo "$n" >"$DIR/nodes"
}

# What a broker has loaded is written once, when the first one that anybody stops ends in order.
archive() {
  local file=$LIB/broker.jsa
  ARCHIVE=(-XX:SharedArchiveFile="$file" -Xlog:cds=off -Xlog:cds+dynamic=off)
  [ -f "$file" ] || ARCHIVE=(-XX:ArchiveClassesAtExit="$file.$$" -Xlog:cds=off -Xlog:cds+dynamic=off)
}

launch() {
  local d=$DIR/node$1
  [ -f "$d/log" ] && mv "$d/log" "$d/log.previous"
  # setsid and closed descriptors: the broker outlives the shell that started it and holds none of its pipes
  setsid java -Xms"$HEAP" -Xmx"$HEAP" -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:+ExitOnOutOfMemoryError \
    -Djava.awt.headless=true -Dlog4j2.configurationFile="$KIT/log4j2.properties" "${ARCHIVE[@]}" ${KAFKA_JVM_ARGS:-} \
    -cp "$LIB/*" kafka.Kafka "$d/server.properties" </dev/null >"$d/log" 2>&1 &
  echo $! >"$d/pid"
}

start() {
  local n=${1:-} i deadline
  [ "$(nodes)" != 0 ] && { [ -z "$n" ] || [ "$n" = "$(nodes)" ] || die "$DIR holds a cluster of $(nodes) nodes"; n=$(nodes); }
  n=${n:-1}
  fetch; prepare "$n"
  [ -z "$OWNER" ] || outlive "$OWNER"
  ready $(seq "$n")
  bootstrap
}

# However the owner ends, its brokers end.
outlive() {
  setsid bash -c 'while [ -d "/proc/$1" ]; do sleep 1; done; exec "$2" stop --dir "$3" --wipe' \
    kafka-owner "$1" "${BASH_SOURCE[0]}" "$DIR" </dev/null >/dev/null 2>&1 &
}

# Launches these nodes where they do not run, and waits for them.
ready() {
  local i deadline=$((SECONDS + 90))
  archive
  for i in "$@"; do alive "$i" || launch "$i"; done
  for i in "$@"; do
    until grep -qs 'Kafka Server started' "$DIR/node$i/log"; do
      kill -0 "$(cat "$DIR/node$i/pid")" 2>/dev/null || { tail -20 "$DIR/node$i/log" >&2; die "node $i ended; see $DIR/node$i/log"; }
      [ $SECONDS -lt $deadline ] || die "node $i not ready in 90 s; see $DIR/node$i/log"
      sleep 0.05
    done
  done
}

stop() {
  local list=${1:-$(seq "$(nodes)")} i deadline=$((SECONDS + 30))
  for i in $list; do alive "$i" && kill "$(cat "$DIR/node$i/pid")"; done
  for i in $list; do
    while alive "$i"; do [ $SECONDS -lt $deadline ] || kill -9 "$(cat "$DIR/node$i/pid")"; sleep 0.05; done
    rm -f "$DIR/node$i/pid"
  done
  # Several may have been written at once; any of them will do.
  for i in "$LIB"/broker.jsa.*; do [ -f "$i" ] && mv "$i" "$LIB/broker.jsa"; done || true
  [ -z "$WIPE" ] || { [ -f "$DIR/cluster-id" ] && rm -rf "$DIR"; }
}

status() {
  local i pid
  for i in $(seq "$(nodes)"); do
    if alive "$i"; then pid=$(cat "$DIR/node$i/pid")
      echo "node $i: pid $pid, port $(port "$i"), controller $(cport "$i"), RSS $(awk '/VmRSS/{print int($2/1024)}' /proc/"$pid"/status) MiB, peak $(awk '/VmHWM/{print int($2/1024)}' /proc/"$pid"/status) MiB"
    else echo "node $i: down, port $(port "$i")"; fi
  done
}

CMD=${1:-help}; [ $# -gt 0 ] && shift
DIR=; PORTS=; HEAP=512m; WIPE=; SASL=; USERS=(); SETS=(); ARGS=(); ARCHIVE=(); OWNER=
while [ $# -gt 0 ]; do
  case $1 in
    --dir) DIR=$2; shift ;; --ports) PORTS=$2; shift ;; --heap) HEAP=$2; shift ;; --set) SETS+=("$2"); shift ;; --owner) OWNER=$2; shift ;;
    --user) USERS+=("$2"); shift ;; --sasl) SASL=1 ;; --wipe) WIPE=1 ;; *) ARGS+=("$1") ;;
  esac; shift
done
case $CMD in fetch|help) ;; *) [ -n "$DIR" ] || die "--dir is needed"; DIR=$(realpath -m "$DIR") ;; esac
case $CMD in
  fetch) fetch ;;
  start) start "${ARGS[0]:-}" ;;
  stop) stop "${ARGS[0]:-}" ;;
  restart) ready "${ARGS[0]}" ;;
  kill) alive "${ARGS[0]}" && kill -9 "$(cat "$DIR/node${ARGS[0]}/pid")" ;;
  status) status ;;
  tool)
    fetch
    CLASS=${ARGS[0]} LOGIN=()
    [[ $CLASS == *.* ]] || CLASS=org.apache.kafka.tools.$CLASS
    [ ! -f "$DIR/admin.properties" ] || LOGIN=(--command-config "$DIR/admin.properties")
    java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dlog4j2.configurationFile="$KIT/log4j2.properties" \
      -cp "$LIB/*" "$CLASS" --bootstrap-server "$(bootstrap)" "${LOGIN[@]}" "${ARGS[@]:1}" ;;
  *) sed -n '2,/^set -euo/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
esac
