#!/usr/bin/env bash
# The dependency rules of infra/docs/architecture.md, held by `cargo tree`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0

fail() { echo "dependency rule broken: $*" >&2; failed=1; }

# The names of all that a package is built from, tests aside.
closure() { cargo tree --quiet --offline -p "$1" -e normal,build --prefix none --format '{p}' | cut -d' ' -f1 | sort -u; }
direct() { cargo tree --quiet --offline -p "$1" -e normal --depth 1 --prefix none --format '{p}' | cut -d' ' -f1 | sort -u; }

# $1 must not be in the closure of $2
never() { closure "$2" | grep -qx "$1" && fail "$2 depends on $1: $3" || true; }
# only the packages after $1 may name it directly
only() {
  local crate=$1 package; shift
  for package in $MEMBERS; do
    case " $* " in *" $package "*) continue ;; esac
    direct "$package" | grep -qx "$crate" && fail "$package uses $crate; only $* may" || true
  done
}

MEMBERS=$(cargo metadata --quiet --offline --no-deps --format-version 1 | grep -oE '"name":"longshore[a-z0-9-]*","version"' | cut -d'"' -f4 | sort -u)

# The benchmarks measure against the bare client.
only rdkafka longshore-log longshore-bench
only rocksdb longshore-log longshore-runtime

PURE="longshore-processor longshore-queue longshore-replication longshore-goals longshore-fleet longshore-swarm-policy
  longshore-node-policy longshore-region-policy"
for package in $PURE longshore-partition longshore-sim; do
  for crate in reqwest rocksdb hyper aws-sdk-s3 rustls; do
    never "$crate" "$package" "the simulator is built with it, quickly"
  done
done
for package in $PURE; do
  for crate in tokio reqwest rocksdb hyper; do
    never "$crate" "$package" "it is pure: no I/O, clock or randomness"
  done
  # Avro's library brings rand for its own use; what is banned is naming it here.
  for crate in rand jiff tracing; do
    direct "$package" | grep -qx "$crate" && fail "$package uses $crate: it is pure" || true
  done
done
for package in $PURE longshore-partition; do
  direct "$package" | grep -qxE 'tokio|rand|jiff' && fail "$package uses tokio, rand or jiff: it does no I/O" || true
  [ -f "$(cargo metadata --quiet --offline --no-deps --format-version 1 | grep -oE "\"manifest_path\":\"[^\"]*\"" | cut -d'"' -f4 | xargs grep -lx "name = \"$package\"" | xargs dirname)/clippy.toml" ] ||
    fail "$package has no clippy.toml: the linter must ban clocks and hash maps there"
done

for package in longshore-api longshore-worker; do
  for crate in longshore-queue longshore-replication longshore-goals longshore-fleet longshore-runtime longshore-control longshore-processor; do
    never "$crate" "$package" "producers never import processors"
  done
done
for package in longshore-region longshore-swarm longshore-node longshore-swarm-policy; do
  for crate in longshore-api longshore-worker longshore-runtime longshore-control longshore-processor longshore-queue longshore-goals longshore-fleet longshore-replication; do
    never "$crate" "$package" "agents share only schemas and infra with the others"
  done
done
for crate in rdkafka rocksdb aws-sdk-s3 aws-config; do
  never "$crate" longshore-node "machines run a small agent"
done

# Planted bugs are for the simulator's own build.
cargo tree --quiet --offline --workspace -e normal,build,dev,features --prefix none --format '{p} {f}' |
  grep -E '^longshore-planted .*planted-bugs' && fail "something turns planted-bugs on in a build of the whole workspace" || true

# Clones share a target folder: see infra/checkout.
grep -rnE --include='*.rs' 'env!\("CARGO_MANIFEST_DIR"\)' agents infra processors producers schemas tests &&
  fail "the path of a checkout is compiled in; look for it at run time" || true

[ $failed = 0 ] && echo "dependency rules hold for $(wc -w <<<"$MEMBERS") packages"
exit $failed
