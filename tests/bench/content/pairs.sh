#!/usr/bin/env bash
# Fetches both versions of what `make bench-delta` compares (pairs.txt) into the folder $1, and unpacks them: PAIR/old and PAIR/new. The
# checksums of all archives are pinned in pairs.sha256. What is complete is not fetched again; what cannot be had is named, and its pair is left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
into=$1
lists=$PWD
mkdir -p "$into"

# Fetches one archive into the current folder: $1 registry, $2 package, $3 version.
fetch() {
  case $1 in
    debian) apt-get download -q "$2=$3" ;;
    npm) npm pack --silent "$2@$3" ;;
    pypi) python3 -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux2014_x86_64 --python-version 3.11 "$2==$3" ;;
    maven) mvn -q -B dependency:copy -Dartifact="$2:$3" -DoutputDirectory=. ${KAFKA_MVN_ARGS:-} ;;
  esac
}

# Puts the archive $3 of package $2 where it is in an installation below $4; versions are no part of the path, but for jars, which are used as they are.
unpack() {
  local target="$4/$2"
  case $1 in
    # Links to absolute paths would lead out of the tree.
    debian) mkdir -p "$4" && dpkg-deb -x "$3" "$4" && find "$4" -type l -lname '/*' -delete ;;
    npm) mkdir -p "$target" && tar -xzf "$3" -C "$target" --strip-components=1 ;;
    pypi) mkdir -p "$4" && python3 -m zipfile -e "$3" "$4" ;;
    maven) mkdir -p "$4/lib" && cp "$3" "$4/lib" ;;
  esac
}

# $1 pair, $2 old or new: the packages of the list on standard input, as lines of registry, package, version.
version() {
  local registry package version archives="$into/$1/archives/$2"
  mkdir -p "$archives" "$into/$1/$2"
  while read -r registry package version; do
    local one="$archives/${package//\//_}"
    mkdir -p "$one"
    (cd "$one" && fetch "$registry" "$package" "$version" </dev/null) || return 1
    unpack "$registry" "$package" "$one"/* "$into/$1/$2"
  done
}

pinned() { (cd "$into/$1/archives" && find . -type f | sort | xargs sha256sum | sed "s| \./| $1/|"); }

pair() {
  local lines=$lists/pairs.txt
  rm -rf "${into:?}/$1"
  awk -v pair="$1" '$1 == pair { print $2, $3, $4 }' "$lines" | version "$1" old &&
    awk -v pair="$1" '$1 == pair { print $2, $3, $5 }' "$lines" | version "$1" new || return 1
  [ -n "${PIN:-}" ] || diff <(pinned "$1") <(grep " $1/" "$lists/pairs.sha256")
}

# A program of ours (tool/), before and after one line of it was changed.
tool() {
  local version
  rm -rf "$into/tool"
  for version in old new; do
    rm -rf "$into/tool/source" && mkdir -p "$into/tool/$version" && cp -r "$lists/tool" "$into/tool/source" || return 1
    [ $version = old ] || sed -i 's/{count:>8} {value}/{count:>9} of {value}/' "$into/tool/source/src/main.rs"
    (cd "$into/tool/source" && CARGO_TARGET_DIR="$into/tool/target" cargo build --release --locked) || return 1
    cp "$into/tool/target/release/lines" "$into/tool/$version/"
  done
  rm -rf "$into/tool/target"
}

# Archives as they come, of the other pairs.
archives() {
  local version
  rm -rf "$into/archives"
  for version in old new; do
    mkdir -p "$into/archives/$version"
    cp "$into/node/archives/$version"/*/* "$into/python/archives/$version"/*/* "$into/archives/$version" || return 1
  done
}

# $1 what is made, $2 what tells whether it is what would be made now.
complete() { [ "$(cat "$into/$1/.complete" 2>/dev/null)" = "$2" ]; }

# Makes the pair $1 by the function $3, unless it is complete.
make_pair() {
  complete "$1" "$2" && return
  echo "setup: making both versions of $1 for bench-delta" >&2
  if $3 "$1" >"$into/$1.log" 2>&1; then
    echo "$2" >"$into/$1/.complete"
  else
    echo "setup: $1 cannot be had as pinned, bench-delta does without; see $into/$1.log" >&2
    rm -rf "${into:?}/$1"
  fi
}

for name in $(grep -v '^#' pairs.txt | cut -d' ' -f1 | uniq); do
  make_pair "$name" "$(grep "^$name " pairs.txt | cat - pairs.sha256 | sha256sum)" pair
done
make_pair tool "$(cat tool/Cargo.* tool/src/* | sha256sum)" tool
make_pair archives "$(cat pairs.sha256 | sha256sum)" archives
