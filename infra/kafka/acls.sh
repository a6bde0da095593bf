#!/usr/bin/env bash
# What each role of Longshore needs to be allowed on a Kafka cluster with ACLs (infra/docs/kafka.md says why).
#
#   acls.sh ROLE USER [--prefix P]                   prints it: the arguments of one kafka-acls call per line
#   acls.sh ROLE USER [--prefix P] -- COMMAND...     does it: calls COMMAND with each of these lines' arguments, such as
#                                                    kafka-acls.sh --bootstrap-server HOST:9092 --command-config FILE
# Roles
#   control    `longshore control`: creates the topics, reads and writes all of them, in transactions
#   region     `longshore region`: reads all topics; writes its reports, which it signs
#   producer   a program of somebody else: publishes build requests and reads facts, in groups named USER.*
# P is the installation's kafka.prefix: "longshore." unless it was set.
set -euo pipefail
die() { echo "acls: $*" >&2; exit 1; }

[ $# -ge 2 ] || { sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 1; }
ROLE=$1; USER_NAME=$2; shift 2
PREFIX=longshore.
[ "${1:-}" != --prefix ] || { [ $# -ge 2 ] || die "--prefix needs a value"; PREFIX=$2; shift 2; }
[ $# -eq 0 ] || [ "$1" = -- ] || die "unknown argument $1; the command follows --"
[ $# -eq 0 ] || shift
[[ $USER_NAME =~ ^[A-Za-z0-9._@-]+$ ]] || die "a user's name consists of letters, digits and . _ @ -, not \"$USER_NAME\""
[[ $PREFIX =~ ^[A-Za-z0-9._-]+$ ]] || die "without a prefix nothing tells Longshore's topics from others: give each of them its ACLs by hand"

rights() {
  case $ROLE in
    control)
      # Describe comes with Read and Write; DescribeConfigs is for the check of the topics' settings at start.
      echo "--operation Read --operation Write --operation Create --operation DescribeConfigs --topic $PREFIX --resource-pattern-type prefixed"
      echo "--operation Read --group $PREFIX --resource-pattern-type prefixed"
      echo "--operation Write --operation Describe --transactional-id $PREFIX --resource-pattern-type prefixed"
      ;;
    region)
      echo "--operation Describe --topic $PREFIX --resource-pattern-type prefixed"
      # Not what other regions' nodes answer, nor what people ask of processors.
      echo "--operation Read --topic ${PREFIX}goal-state --topic ${PREFIX}artifacts --topic ${PREFIX}pack-hints --topic ${PREFIX}fleet-reports --topic ${PREFIX}node-queries"
      echo "--operation Read --group $PREFIX --resource-pattern-type prefixed"
      echo "--operation Write --topic ${PREFIX}artifact-requests --topic ${PREFIX}fleet-reports --topic ${PREFIX}node-answers"
      ;;
    producer)
      echo "--operation Write --topic ${PREFIX}build-requests"
      echo "--operation Read --topic ${PREFIX}builds --topic ${PREFIX}artifacts --topic ${PREFIX}goals --topic ${PREFIX}fleet"
      echo "--operation Read --group $USER_NAME. --resource-pattern-type prefixed"
      ;;
    *) die "the roles are control, region and producer, not \"$ROLE\"" ;;
  esac
}

lines=$(rights)
while read -r -a right; do
  if [ $# -eq 0 ]; then
    echo "--add --allow-principal User:$USER_NAME ${right[*]}"
  else
    "$@" --add --force --allow-principal "User:$USER_NAME" "${right[@]}" </dev/null
  fi
done <<<"$lines"
