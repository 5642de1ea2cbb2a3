#!/usr/bin/env bash
# Starts a launch on every host of a TPU pod slice.
#
#   launch/tpu_pod.sh NAME ZONE --config=munit:camelyon16 --workdir=/mnt/runs/m
#
# The slice needs jaxmed installed with its extra [tpu] and the working directory
# mounted, e.g. of a checkout there:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command='pip install -e "/mnt/jaxmed[tpu]"'
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
printf -v flags '%q ' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="JAXMED_DATA=${JAXMED_DATA:-} python3 -m jaxmed.launch $flags --distributed"
