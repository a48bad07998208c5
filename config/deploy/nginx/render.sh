#!/bin/sh
# Write nginx's configuration: NGINX_HOST=mimu.example.org sh render.sh FOLDER, from the templates beside this file. FOLDER
# gets nginx.conf and conf.d/; nothing else in it is touched. envsubst comes with gettext (Debian: gettext-base).
set -eu

to=${1:?usage: NGINX_HOST=mimu.example.org sh render.sh FOLDER}
from=$(dirname "$0")

# The public name of the server, and that of its files if they are in S3 or MinIO; one certificate is for both.
: "${NGINX_HOST:?the public name of the server, as mimu.example.org}"
: "${NGINX_FILES_HOST=}"
# Folder with fullchain.pem and privkey.pem. Without them only port 80 is served, for certbot to get them.
: "${NGINX_TLS=/etc/letsencrypt/live/$NGINX_HOST}"
# Where certbot --webroot puts its challenges.
: "${NGINX_ACME=/var/www/html}"
# Mimu's two servers; the same one twice, if there is only one.
: "${NGINX_SERVER_A=127.0.0.1:8081}"
: "${NGINX_SERVER_B=127.0.0.1:8082}"
# MinIO.
: "${NGINX_FILES_SERVER=127.0.0.1:9000}"
# The user of the workers: www-data on Debian, nginx in nginx's image.
: "${NGINX_USER=www-data}"
# To journald, which keeps both logs within its limits.
: "${NGINX_ACCESS_LOG=syslog:server=unix:/dev/log,tag=nginx,nohostname}"
: "${NGINX_ERROR_LOG=syslog:server=unix:/dev/log,tag=nginx,nohostname}"
# A machine without IPv6 can't listen on it: the lines become comments.
if [ -e /proc/net/if_inet6 ]; then NGINX_IPV6=; else NGINX_IPV6='# '; fi
export NGINX_HOST NGINX_FILES_HOST NGINX_TLS NGINX_ACME NGINX_SERVER_A NGINX_SERVER_B NGINX_FILES_SERVER NGINX_USER \
    NGINX_ACCESS_LOG NGINX_ERROR_LOG NGINX_IPV6

render() {
    # Only these names: $ also begins nginx's variables.
    names=$(grep -o '\${NGINX_[A-Z0-9_]*}' "$from/$1.template" | sort -u | tr '\n' ' ')
    envsubst "$names" <"$from/$1.template" >"$2.part"
    mv "$2.part" "$2" # nginx never reads half of it
}

certificate=$NGINX_TLS/fullchain.pem
if [ ! -e "$certificate" ] && [ -e "$to/conf.d/mimu.conf" ]; then
    echo "render.sh: $certificate is gone; nothing was changed" >&2
    exit 1
fi

umask 022
mkdir -p "$to/conf.d"
render nginx.conf "$to/nginx.conf"
render http.conf "$to/conf.d/http.conf"
if [ ! -e "$certificate" ]; then
    echo "render.sh: without $certificate only port 80 is served; run this again when it is there" >&2
    exit
fi
render mimu.conf "$to/conf.d/mimu.conf"
# Named so that it is read after the other, whose log format it uses.
if [ -n "$NGINX_FILES_HOST" ]; then
    render mimu_files.conf "$to/conf.d/mimu_files.conf"
else
    rm -f "$to/conf.d/mimu_files.conf"
fi
