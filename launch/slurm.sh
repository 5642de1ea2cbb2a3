#!/usr/bin/env bash
#SBATCH --job-name=jaxmed
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Starts a launch on every node of a job; a node has all its GPUs.
#
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=32 launch/slurm.sh \
#     --config=munit:camelyon16 --workdir=/shared/runs/munit
#
# Two minutes before its time is up, Slurm sends SIGTERM: the launch saves and
# leaves, the job goes back into the queue, and the same command goes on.
set -uo pipefail
srun --kill-on-bad-exit=0 python3 -m jaxmed.launch "$@" --distributed
code=$?
if [ "$code" -eq 143 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
