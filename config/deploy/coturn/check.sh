#!/bin/sh
# Reject a configuration that coturn can't read, or that opens the relay: sh check.sh /etc/turnserver.conf, as the user that
# coturn runs as. coturn itself starts with its defaults if it can't read its file: everybody may then relay to all that this
# machine can reach. Exit codes: 0 good, 78 rejected.
set -u

file=${1:?usage: sh check.sh FILE}
refuse() {
    echo "coturn must not start: $file $1" >&2
    exit 78 # sysexits.h: EX_CONFIG
}

[ -f "$file" ] || refuse "is not there."
[ -r "$file" ] || refuse "can't be read by user $(id -un 2>/dev/null || id -u): chown root:turnserver and chmod 0640."
text=$(cat -- "$file") || refuse "can't be read."

# As in coturn, a name ends at "=", at a space or at the end of the line; 0, false, no or off turn a switch off.
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
# One of each kind: loopback, private, the cloud's metadata, and IPv6. If these are there, the others are, too.
for first in 127 10 169.254 4000; do
    printf '%s\n' "$text" | grep -Eq "^[[:space:]]*denied-peer-ip[[:space:]=]+$first[.:]" ||
        refuse "lacks denied-peer-ip for $first…: users could reach what is behind your firewall."
done
