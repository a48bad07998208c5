#!/bin/sh
# Run by MinIO's container: starts MinIO, and makes the user that the servers have, who may use their bucket and no other.
#
# What it does is the same at each start, so that a changed password or policy is taken over. Secrets go through the
# environment and standard input, never through arguments, which every user of the machine could read.
set -eu

minio server /data --address=:9000 --console-address=:9001 &
minio=$!
trap 'kill -TERM $minio' TERM INT

MC_HOST_local="http://$MINIO_ROOT_USER:$MINIO_ROOT_PASSWORD@127.0.0.1:9000"
export MC_HOST_local
until mc ready local > /dev/null 2>&1; do
  kill -0 $minio
  sleep 1
done
sed "s|:::mimu|:::$S3_BUCKET|" /etc/mimu/minio/policy.json > /tmp/policy.json
mc admin policy create local mimu /tmp/policy.json
printf '%s\n%s\n' mimu "$MINIO_PASSWORD" | mc admin user add local
# Attached before, it is an error to attach it again: what counts is that it is.
mc admin policy attach local mimu --user mimu > /dev/null 2>&1 || mc admin user info local mimu | grep -q 'PolicyName: mimu'
unset MC_HOST_local MINIO_PASSWORD

# The first wait ends when a signal came, the second when MinIO has.
wait $minio || wait $minio
