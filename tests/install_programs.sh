#!/bin/sh
# Some tests need programs that pip doesn't bring: coturn, which relays calls, Chromium, which makes some and shows /docs, nginx with
# envsubst, which is the proxy, systemd, which judges its units, and Prometheus, which reads the metrics. Install from the
# system's packages what is missing, when we may; nothing is asked. Say what could not be installed.

missing() {
    case $1 in
        coturn) ! command -v turnserver ;;
        prometheus) ! { command -v prometheus && command -v promtool; } ;;
        chromium) ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } ;;
        nginx) ! { command -v nginx || [ -x /usr/sbin/nginx ]; } ;;
        gettext-base) ! command -v envsubst ;;
        systemd) ! command -v systemd-analyze ;;
    esac >/dev/null 2>&1
}

wanted=
for package in coturn chromium nginx gettext-base systemd prometheus; do
    if missing $package; then wanted="$wanted $package"; fi
done

if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing what some tests need (once):$wanted ..."
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null >/dev/null 2>&1
    for package in $wanted; do # one by one: a system may have the one and not the other
        # No service is started by it: the tests run their own on loopback.
        RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $package </dev/null >/dev/null 2>&1
    done
fi

if missing coturn; then
    echo "WARNING: coturn (turnserver) is not installed; the tests that relay calls WILL BE SKIPPED." >&2
fi
if missing chromium; then
    echo "WARNING: Chromium is not installed; the tests in a browser WILL BE SKIPPED." >&2
fi
if missing nginx || missing gettext-base; then
    echo "WARNING: nginx or envsubst is not installed; the tests behind the proxy WILL BE SKIPPED." >&2
fi
if missing systemd; then
    echo "WARNING: systemd-analyze is not installed; the tests of the units WILL BE SKIPPED." >&2
fi
if missing prometheus; then
    echo "WARNING: Prometheus is not installed; the tests of metrics and alerts WILL BE SKIPPED." >&2
fi
