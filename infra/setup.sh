#!/usr/bin/env bash
# Installs what this machine lacks, or says exactly what is missing. Does nothing, quickly, where all is there.
#
#   infra/setup.sh build      a C and C++ toolchain and libclang (RocksDB is compiled from source)
#   infra/setup.sh console    the console's page into producers/console/dist, with Node.js if there is one
#   infra/setup.sh browser    Chromium and playwright-core, for the browser test
#   infra/setup.sh kafka      Java and Maven, and Kafka's jars from Maven Central, for tests and benchmarks on a real cluster
#   infra/setup.sh apicurio   a schema registry from Maven Central, for the test that registers with one
#   infra/setup.sh foreign    Python, Node.js and kcat, with Kafka clients that are not ours: they publish and read as others do
#   infra/setup.sh compose    docker-compose, which the test of infra/compose reads the file with; no Docker is started
#   infra/setup.sh streams    a Java compiler and Kafka Streams, which benchmarks compare with
#   infra/setup.sh content    packages from four registries and rclone, for the benchmark of publishing
#   infra/setup.sh pairs      two versions of packages and of a program, and casync, xdelta3, zstd and bsdiff, for the benchmark of updates
#   infra/setup.sh etcd       etcd, which the benchmark of pushing goals compares with
#   infra/setup.sh swarm      iproute2 and BitTorrent clients, which the benchmark of the swarm compares with
#   infra/setup.sh faketime   libfaketime, for the tests of clocks that jump
#   infra/setup.sh mounts     what tests of power cuts and full disks mount their file systems with
#   infra/setup.sh netns      iproute2 and curl, for the test on three network namespaces
#   infra/setup.sh systemd    systemd-analyze, which the test of the node's unit reads it with; no systemd is started
#   infra/setup.sh deny       cargo-deny, for `make lint`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CACHE="${LONGSHORE_CACHE:-$HOME/.cache/longshore}"
mkdir -p "$CACHE"

die() { echo "setup: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Debian packages: $1 what they are for, the rest their names.
debian() {
  local what=$1; shift
  local sudo=
  have apt-get || die "$what: install the equivalents of these Debian packages: $*"
  if [ "$(id -u)" != 0 ]; then
    sudo=sudo
    have sudo || die "$what: as root, run: apt-get install $*"
  fi
  echo "setup: installing $* ($what)" >&2
  $sudo apt-get update -qq >"$CACHE/apt.log" 2>&1 &&
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >>"$CACHE/apt.log" 2>&1 ||
    die "$what: apt-get install $* failed; see $CACHE/apt.log"
}

# The names that RocksDB's bindings look for. libclang-cpp, which other packages bring, is another library.
libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] || ldconfig -p 2>/dev/null | grep -qE '[[:space:]]libclang(-[0-9.]+)?\.so' ||
    compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null || compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null
}

build() {
  have cargo || die "Rust is missing: install it with rustup (https://rustup.rs), version 1.95 or newer"
  have git || debian "git, to fetch commits" git
  [ -e /usr/include/openssl/ssl.h ] && [ -e /usr/include/zlib.h ] && have pkg-config ||
    debian "OpenSSL and zlib, for Kafka's client" libssl-dev zlib1g-dev pkg-config
  have c++ && have make || debian "a C++ toolchain, for RocksDB" build-essential
  libclang || debian "libclang, for RocksDB's bindings" libclang-dev
}

# Vite needs Node.js 20 or newer, with npm.
node20() { have npm && have node && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; }

# Without Node.js the page says so: the API and the CLI are complete without it.
console() {
  local dir=producers/console stamp
  if ! node20; then
    echo "setup: no Node.js 20 or newer: the console will be a page that says so" >&2
    return
  fi
  stamp=$(cat "$dir"/package-lock.json "$dir"/*.ts "$dir"/*.html $(find "$dir/src" -type f | sort) | sha256sum | cut -d" " -f1)
  [ "$(cat "$dir/dist/.stamp" 2>/dev/null)" = "$stamp" ] && return
  echo "setup: building the console" >&2
  (cd "$dir" && npm ci --no-audit --no-fund --silent && npm run --silent build) >"$CACHE/console.log" 2>&1 ||
    die "the console's build failed; see $CACHE/console.log"
  echo "$stamp" >"$dir/dist/.stamp"
}

browser() {
  node20 || die "the browser test presses buttons of the console, which Node.js 20 or newer builds: install it with npm \
(Debian 12 packages an older one; Debian 13: apt-get install nodejs npm), then run this again"
  [ -x /usr/bin/chromium ] || debian "Chromium, for the browser test" chromium
  (cd tests/e2e/browser && [ -d node_modules/playwright-core ] || npm ci --no-audit --no-fund --silent) >"$CACHE/browser.log" 2>&1 ||
    die "playwright-core could not be installed; see $CACHE/browser.log"
}

kafka() {
  have java || debian "Java, for Kafka" openjdk-17-jre-headless
  have mvn || debian "Maven, to fetch Kafka" maven
  infra/kafka/kafka.sh fetch
}

compose() {
  have docker-compose || debian "docker-compose, for the test of infra/compose" docker-compose
}

apicurio() {
  local version=3.0.9 dir="$CACHE/apicurio"
  have java || debian "Java, for Apicurio" openjdk-17-jre-headless
  have mvn || debian "Maven, to fetch Apicurio" maven
  [ -f "$dir/.complete" ] && return
  mkdir -p "$dir"
  echo "setup: fetching Apicurio $version from Maven Central" >&2
  mvn -q -B dependency:copy -Dartifact="io.apicurio:apicurio-registry-app:$version:tar.gz:all" -DoutputDirectory="$dir" \
    ${KAFKA_MVN_ARGS:-} >&2 || die "Apicurio could not be fetched from Maven Central"
  tar -xzf "$dir/apicurio-registry-app-$version-all.tar.gz" -C "$dir"
  rm "$dir/apicurio-registry-app-$version-all.tar.gz"
  touch "$dir/.complete"
}

# Clients in other languages, for the tests of tests/foreign.
foreign() {
  local dir=tests/foreign env="$CACHE/foreign" stamp
  node20 || die "the foreign clients need Node.js 20 or newer with npm \
(Debian 12 packages an older one; Debian 13: apt-get install nodejs npm), then run this again"
  have kcat || debian "kcat, which reads the topics" kcat
  python3 -c 'import ensurepip, venv' 2>/dev/null || debian "Python's virtual environments, for its Kafka client" python3-venv
  mkdir -p "$env"
  stamp=$(sha256sum <"$dir/python/requirements.txt")
  [ "$(cat "$env/venv/.stamp" 2>/dev/null)" = "$stamp" ] || {
    echo "setup: installing Python's Kafka client" >&2
    python3 -m venv --clear "$env/venv" &&
      "$env/venv/bin/pip" install --quiet --disable-pip-version-check -r "$dir/python/requirements.txt"
  } >"$env/python.log" 2>&1 || die "Python's Kafka client could not be installed; see $env/python.log"
  echo "$stamp" >"$env/venv/.stamp"
  (cd "$dir/node" && [ -d node_modules/kafkajs ] || npm ci --no-audit --no-fund --silent) >"$env/node.log" 2>&1 ||
    die "kafkajs could not be installed; see $env/node.log"
}

etcd() {
  have etcd || debian "etcd, to compare with" etcd-server
}

swarm() {
  netns
  have setpriv || debian "setpriv, so that nothing outlives the benchmark" util-linux
  have aria2c && have transmission-daemon && have transmission-create && /usr/bin/python3 -c "import libtorrent" 2>/dev/null ||
    debian "BitTorrent clients, to compare with" aria2 transmission-daemon transmission-cli python3 python3-libtorrent
}

streams() {
  kafka
  have javac || debian "a Java compiler, for Kafka Streams" openjdk-17-jdk-headless
  [ -f "$CACHE/streams/.complete" ] && return
  mvn -q -B -f tests/bench/streams/pom.xml dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$CACHE/streams" ${KAFKA_MVN_ARGS:-} >&2 || die "Kafka Streams could not be fetched from Maven Central"
  touch "$CACHE/streams/.complete"
}

content() {
  have rclone || debian "rclone, which publishing is compared with" rclone
  have mvn || debian "Maven, to fetch packages" maven
  have npm || echo "setup: no npm: the benchmark's content is without its packages" >&2
  python3 -m pip --version >/dev/null 2>&1 || debian "pip, to fetch packages" python3-pip
  tests/bench/content/fetch.sh "$CACHE/packages"
}

pairs() {
  have casync && have xdelta3 && have zstd && have bsdiff ||
    debian "casync, xdelta3, zstd and bsdiff, which updates are compared with" casync xdelta3 zstd bsdiff
  have mvn || debian "Maven, to fetch packages" maven
  python3 -m pip --version >/dev/null 2>&1 || debian "pip, to fetch packages" python3-pip
  tests/bench/content/pairs.sh "$CACHE/pairs"
}

faketime() {
  compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || debian "libfaketime, for the tests of clocks that jump" libfaketime
}

# The tests themselves fail, and say why, where this does not help.
mounts() {
  have mount && have unshare || debian "mount and unshare, for tests of power cuts and full disks" mount util-linux
  [ -e /dev/fuse ] || modprobe fuse 2>/dev/null ||
    echo "setup: no /dev/fuse: tests of power cuts will fail; load the kernel module fuse, or give the container the device" >&2
  [ "$(id -u)" = 0 ] || echo "setup: not root: tests of power cuts and full disks, which mount file systems, will fail" >&2
}

# As above.
netns() {
  have ip && have curl || debian "iproute2 and curl, for the test on network namespaces" iproute2 curl
  [ "$(id -u)" = 0 ] || echo "setup: not root: the test on network namespaces, which makes them, will fail" >&2
}

systemd() {
  have systemd-analyze || debian "systemd-analyze, for the test of the node's unit" systemd
}

deny() {
  have cargo-deny && return
  echo "setup: building cargo-deny (once, some minutes)" >&2
  CARGO_TARGET_DIR="$CACHE/tools-target" CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
    cargo install --quiet --locked cargo-deny --version 0.20.2 || die "cargo install cargo-deny failed"
}

for part in "$@"; do "$part"; done
