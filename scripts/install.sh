#!/usr/bin/env bash
# `uv pip install` with what pip is configured with: an index, certificates, and a place where local builds (a CPU build of PyTorch) are found.
# Without the last, uv would take the registry's newest PyTorch and gigabytes of CUDA with it.
set -euo pipefail
configured() {
    local variable="PIP_$(echo "$1" | tr 'a-z-' 'A-Z_')"
    if [ -n "${!variable:-}" ]; then echo "${!variable}"; else python -m pip config get "global.$1" 2>/dev/null || true; fi
}
links=$(configured find-links)
index=$(configured index-url)
certificates=$(configured cert)
[ -n "$links" ] && export UV_FIND_LINKS="${UV_FIND_LINKS:-$(echo "$links" | tr -s ' \n' ',,' | sed 's/,$//')}"
[ -n "$index" ] && export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
[ -n "$certificates" ] && export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificates}"
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
exec uv pip install --quiet --python "$(command -v python)" "$@"
