#!/bin/bash
# The same command on all hosts of a TPU slice (TPU VMs):
#   deploy/tpu_vm.sh NAME ZONE setup                       install this repository on every host
#   deploy/tpu_vm.sh NAME ZONE train --config configs/train/….yaml
# What follows ZONE goes to qwen3-omni. Hosts find one another by the metadata server.
set -euo pipefail

if (($# < 3)); then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
everywhere=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command)

if [[ $1 == setup ]]; then
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
  git -C "$root" archive --format=tar.gz -o "$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:qwen3-omni-jax.tar.gz" --zone "$zone" --worker=all
  "${everywhere[@]}" 'mkdir -p qwen3-omni-jax && tar -xzf qwen3-omni-jax.tar.gz -C qwen3-omni-jax && cd qwen3-omni-jax &&
    python3 -m venv .venv && .venv/bin/pip install --quiet -c constraints.txt -e ".[tpu,train,eval]"'
else
  "${everywhere[@]}" "cd qwen3-omni-jax && .venv/bin/qwen3-omni $(printf '%q ' "$@")"
fi
