#!/bin/sh
# Builds the wheel of every package into the folder $1. Run where libs/ and services/ are, with uv.
set -eu
out=$1
mkdir -p "$out"
# In the order of their builds: the core is compiled against the header in the store's wheel.
for package in libs/base services/objectstore services/gcs services/raylet libs/core libs/data libs/train libs/tune libs/serve libs/rl; do
    uv build --quiet --wheel --no-sources --find-links "$out" --build-constraint constraints-build.txt --out-dir "$out" "$package"
done
