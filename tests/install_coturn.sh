#!/bin/sh
# The call tests relay through a real coturn: install it from the system's packages when it is missing and we may.
command -v turnserver >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing coturn for the call tests ..."
    export DEBIAN_FRONTEND=noninteractive
    # No service is started by it: the tests run their own on loopback.
    { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends coturn; } >/dev/null 2>&1 && exit 0
fi
echo "WARNING: coturn (turnserver) is not installed; the tests that relay calls WILL BE SKIPPED." >&2
