#!/bin/bash
# A service's place in HAProxy, by its runtime socket. The backend is called like the service and has a server for each node.
#
#   "hooks": {
#     "before_stop": {"command": ["/usr/local/lib/longshore/haproxy-socket.sh", "drain"], "timeout_seconds": 60},
#     "after_start": {"command": ["/usr/local/lib/longshore/haproxy-socket.sh", "register"]}
#   }
#
# HAPROXY_SOCKET  HOST:PORT (stats socket ipv4@10.0.0.1:9999 level admin) or a path, which needs socat [/run/haproxy/admin.sock]
# HAPROXY_HOST    where HAProxy reaches this node [leave the address as it is]
# HAPROXY_DRAIN   seconds that open sessions are given [30]
set -euo pipefail
socket=${HAPROXY_SOCKET:-/run/haproxy/admin.sock}
server=$LONGSHORE_SERVICE/$NODE

ask() {
  if [ "${socket#/}" != "$socket" ]; then
    printf '%s\n' "$1" | socat -t 5 - "UNIX-CONNECT:$socket"
    return
  fi
  exec 3<>"/dev/tcp/${socket%:*}/${socket##*:}" || return 1
  printf '%s\n' "$1" >&3
  cat <&3
  exec 3>&-
}

# HAProxy answers nothing, or what it did, when all is well.
tell() {
  local answer
  answer=$(ask "$1") || { echo "HAProxy cannot be reached at $socket" >&2; exit 1; }
  case $answer in
    *"No such"* | *"nknown"* | *"require"* | *"ermission"*) echo "HAProxy, told \"$1\": $answer" >&2; exit 1 ;;
  esac
}

# Open sessions: the fifth column of its line of `show stat`.
sessions() { ask 'show stat' | awk -F, -v server="$server" '$1 "/" $2 == server { print $5 }'; }

case ${1:-} in
  register)
    [ -z "${HAPROXY_HOST:-}" ] || tell "set server $server addr $HAPROXY_HOST port $PORT"
    tell "set server $server state ready"
    ;;
  drain)
    tell "set server $server state drain"
    end=$((SECONDS + ${HAPROXY_DRAIN:-30}))
    while open=$(sessions) || exit 1; [ "${open:-0}" != 0 ] && [ $SECONDS -lt $end ]; do sleep 0.2; done
    tell "set server $server state maint"
    ;;
  *) echo "usage: $0 register|drain" >&2; exit 2 ;;
esac
