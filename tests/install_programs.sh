#!/bin/sh
# Some tests need programs that pip doesn't bring: coturn, which relays calls, Chromium, which makes some and shows /docs, nginx with
# envsubst, which is the proxy, systemd, which judges its units, Prometheus, which reads the metrics, and PgBouncer, HAProxy and
# Redis (which speaks TLS), between which and a server docs/connections.md is tried. Install from the system's packages what is
# missing, when we may; nothing is asked. Say what could not be installed.

missing() {
    case $1 in
        coturn) ! command -v turnserver ;;
        prometheus) ! { command -v prometheus && command -v promtool; } ;;
        chromium) ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } ;;
        nginx) ! { command -v nginx || [ -x /usr/sbin/nginx ]; } ;;
        gettext-base) ! command -v envsubst ;;
        systemd) ! command -v systemd-analyze ;;
        pgbouncer) ! { command -v pgbouncer || [ -x /usr/sbin/pgbouncer ]; } ;;
        haproxy) ! { command -v haproxy || [ -x /usr/sbin/haproxy ]; } ;;
        redis-server) ! command -v redis-server ;;
    esac >/dev/null 2>&1
}

wanted=
for package in coturn chromium nginx gettext-base systemd prometheus pgbouncer haproxy redis-server; do
    if missing $package; then wanted="$wanted $package"; fi
done

if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing what some tests need (once):$wanted ..."
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null >/dev/null 2>&1
    # No service is started by it, now or when the machine starts: the tests run their own on loopback, and coturn as Debian
    # installs it is a relay for everybody. RUNLEVEL is for init scripts; systemd asks policy-rc.d, and the mask stays.
    policy=${DESTDIR:-}/usr/sbin/policy-rc.d units=${DESTDIR:-}/etc/systemd/system
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 0755 "$policy"
    fi
    case $wanted in
        *coturn*) mkdir -p "$units" && ln -s -f /dev/null "$units/coturn.service" ;;
    esac
    for package in $wanted; do # one by one: a system may have the one and not the other
        case $package in
            coturn) [ -h "$units/coturn.service" ] || continue ;;
        esac
        RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $package </dev/null >/dev/null 2>&1
    done
    for service in nginx prometheus pgbouncer haproxy redis-server; do
        case $wanted in
            *$service*) systemctl disable "$service" >/dev/null 2>&1 || true ;;
        esac
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
if missing pgbouncer; then
    echo "WARNING: PgBouncer is not installed; the tests of what it refuses and passes on WILL BE SKIPPED." >&2
fi
if missing haproxy; then
    echo "WARNING: HAProxy is not installed; the test of Sentinels behind it WILL BE SKIPPED." >&2
fi
if missing redis-server; then
    echo "WARNING: Redis is not installed; the test of its TLS WILL BE SKIPPED." >&2
fi
if missing prometheus; then
    echo "WARNING: Prometheus is not installed; the tests of metrics and alerts WILL BE SKIPPED." >&2
fi
