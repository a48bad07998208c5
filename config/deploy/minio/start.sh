#!/bin/sh
# MinIO's container runs this: it starts MinIO, and creates the servers' user, who may use their bucket and no other.
#
# It does the same at each start, so that a changed password or policy is applied. Secrets go through the environment
# and standard input, never through arguments, which every user of the machine could read.
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
# It is an error to attach a policy again, so check that it is attached.
mc admin policy attach local mimu --user mimu > /dev/null 2>&1 || mc admin user info local mimu | grep -q 'PolicyName: mimu'
unset MC_HOST_local MINIO_PASSWORD

# A signal ends the first wait; the second ends with MinIO.
wait $minio || wait $minio
