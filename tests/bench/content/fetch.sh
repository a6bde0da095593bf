#!/usr/bin/env bash
# Fetches the pinned packages that `make bench-publish` makes artifacts of, through each registry's own client, into the folder $1:
# archives as they come, and unpacked. What is complete is not fetched again; what cannot be had is named and left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
into=$1
lists=$PWD

# $1 a registry, $2 the command that fetches its list into the current folder, $3 how one of its archives is unpacked into a folder.
registry() {
  local name=$1 stamp done="$into/$1/.complete" archive unpacked
  stamp=$(sha256sum <"$lists/$name.txt")
  [ "$(cat "$done" 2>/dev/null)" = "$stamp" ] && return
  echo "setup: fetching packages of $name for bench-publish" >&2
  rm -rf "${into:?}/$name"
  mkdir -p "$into/$name/archives"
  if ! (cd "$into/$name/archives" && $2) >"$into/$name.log" 2>&1; then
    echo "setup: not all packages of $name could be fetched, bench-publish does without; see $into/$name.log" >&2
    return
  fi
  for archive in "$into/$name/archives"/*; do
    unpacked="$into/$name/unpacked/$(basename "$archive")"
    mkdir -p "$unpacked"
    $3 "$archive" "$unpacked"
  done
  echo "$stamp" >"$done"
}

fetch_debian() { xargs -a "$lists/debian.txt" apt-get download -q; }
unpack_debian() { dpkg-deb -x "$1" "$2"; }
fetch_pypi() {
  python3 -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux2014_x86_64 --python-version 3.11 -r "$lists/pypi.txt"
}
unpack_pypi() { python3 -m zipfile -e "$1" "$2"; }
fetch_npm() { xargs -a "$lists/npm.txt" npm pack --silent; }
unpack_npm() { tar -xzf "$1" -C "$2"; }
fetch_maven() {
  local artifact
  while read -r artifact; do
    mvn -q -B dependency:copy -Dartifact="$artifact" -DoutputDirectory=. ${KAFKA_MVN_ARGS:-} </dev/null || return 1
  done <"$lists/maven.txt"
}
# Jars are run as they are.
unpack_maven() { :; }

for name in debian pypi npm maven; do registry "$name" "fetch_$name" "unpack_$name"; done
