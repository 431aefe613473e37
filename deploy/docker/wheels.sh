#!/bin/sh
# Builds the wheel of every package into the folder $1, which must be absolute, and names them in $1/ours.txt: constraints by which our packages come
# from these files, whatever an index has under their names. Run where libs/ and services/ are, with uv.
set -eu
out=$1
mkdir -p "$out"
: >"$out/ours.txt"
# In the order of their builds: the core is compiled against the header in the store's wheel.
for package in libs/base services/objectstore services/gcs services/raylet libs/core libs/data libs/train libs/tune libs/serve libs/rl; do
    uv build --quiet --wheel --no-sources --build-constraint constraints-build.txt --build-constraint "$out/ours.txt" --out-dir "$out" "$package"
    wheel=$(ls "$out"/"shoal_${package##*/}"-*.whl)
    echo "shoal-${package##*/} @ file://$wheel" >>"$out/ours.txt"
done
