#!/usr/bin/env bash
# Train on several machines under Slurm, one process for each GPU:
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/ostrack_256.py --workdir=/shared/runs/ostrack_256
#
# The checkout, the Python environment (activate it before sbatch, which passes it on), the workdir and the
# prepared data must be visible under the same paths on every machine. jax finds the other processes by
# Slurm's variables. The global batch stays as configured, whatever the number of GPUs.
#SBATCH --job-name=ostrack
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# Two minutes before the time is over, or when the job has to give way, every process saves and exits with 75.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

# Newer versions of srun do not take this from sbatch.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# By default there is a reader for each core of the machine, which the processes of a machine share here.
srun --kill-on-bad-exit=0 --wait=120 \
  python -m training --multi_host "--config.data.num_workers=$((SLURM_CPUS_PER_TASK - 1))" "$@"
code=$?
if [ "$code" -eq 75 ]; then
  echo "saved and stopped; queued again, to go on from the last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
