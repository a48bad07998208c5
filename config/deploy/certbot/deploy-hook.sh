#!/bin/sh
# Install a new certificate for nginx and coturn. certbot runs this after each renewal, if it is in
# /etc/letsencrypt/renewal-hooks/deploy; by hand: sh deploy-hook.sh /etc/letsencrypt/live/mimu.example.org
set -eu
from=${RENEWED_LINEAGE:-${1:?usage: deploy-hook.sh FOLDER}}
to=${MIMU_TLS_DIR:-/etc/mimu/tls}
compose=${MIMU_COMPOSE_DIR:-/opt/mimu}/docker-compose.yml

# A copy, because only root can read certbot's folder. coturn reads it as its own user (10001 in its container), nginx
# as root.
reader=10001
if id -u turnserver >/dev/null 2>&1; then reader=turnserver; fi
install -d -m 0755 "$to"
for name in fullchain.pem privkey.pem; do
    install -o "$reader" -g root -m 0440 "$from/$name" "$to/$name.new"
    mv "$to/$name.new" "$to/$name"
done

# This ends no connection: nginx starts new workers, coturn reads the files again.
if command -v docker >/dev/null 2>&1 && [ -n "$(docker compose -f "$compose" ps -q nginx 2>/dev/null)" ]; then
    docker compose -f "$compose" kill --signal HUP nginx
    docker compose -f "$compose" kill --signal USR2 coturn
else
    systemctl reload nginx
    if systemctl -q is-active coturn; then systemctl kill --kill-whom=main --signal=USR2 coturn; fi
fi
