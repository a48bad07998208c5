#!/bin/sh
# Refuse a configuration of coturn that it can't read, or that opens the relay: sh check.sh /etc/turnserver.conf, as the user
# that coturn runs as. coturn itself starts with its defaults when it can't read its file: everybody may then relay, to
# wherever this machine reaches. Exit codes: 0 good, 78 not.
set -u

file=${1:?usage: sh check.sh FILE}
refuse() {
    echo "coturn must not start: $file $1" >&2
    exit 78 # sysexits.h: EX_CONFIG
}

[ -f "$file" ] || refuse "is not there."
[ -r "$file" ] || refuse "can't be read by user $(id -un 2>/dev/null || id -u): chown root:turnserver and chmod 0640."
text=$(cat -- "$file") || refuse "can't be read."

# As coturn reads it: a name ends at "=", a blank or the end of the line; a switch is off with 0, false, no or off.
has() {
    printf '%s\n' "$text" | grep -Eiq "^[[:space:]]*$1([[:space:]=]|\$)"
}
on() {
    has "$1" && ! printf '%s\n' "$text" | grep -Eiq "^[[:space:]]*$1[[:space:]=]+[\"']?(0|f|false|n|no|off)[\"']?[[:space:]]*\$"
}

on use-auth-secret || refuse "lacks use-auth-secret: everybody could relay."
! has no-auth || refuse "has no-auth: everybody could relay."
! has allow-loopback-peers || refuse "has allow-loopback-peers: users could reach this machine's own services."
for name in no-tcp-relay no-multicast-peers; do
    on "$name" || refuse "lacks $name, as turnserver.conf has it."
done
# One of each kind: loopback, private, the cloud's metadata, and IPv6. That one is there says that the list is.
for first in 127 10 169.254 4000; do
    printf '%s\n' "$text" | grep -Eq "^[[:space:]]*denied-peer-ip[[:space:]=]+$first[.:]" ||
        refuse "lacks denied-peer-ip for $first…: users could reach what is behind your firewall."
done
