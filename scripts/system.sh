#!/usr/bin/env bash
# What the tests need from Debian or Ubuntu: a Redis server for the storage tests. Installs it as root, says how otherwise.
set -euo pipefail
missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "the tests need: ${missing[*]} (sudo apt-get install ${missing[*]})" >&2
    exit 1
fi
