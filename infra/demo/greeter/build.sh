#!/bin/sh
# What a worker runs: leaves the program and its assets in out/.
set -eu
echo "building greeter $(cat version.txt)"
mkdir -p out/bin
rustc --edition 2021 -C opt-level=1 -o out/bin/greeter src/main.rs
out/bin/greeter assets out/assets
echo "$(ls out/assets | wc -l) assets, $(du -sm out | cut -f1) MiB"
