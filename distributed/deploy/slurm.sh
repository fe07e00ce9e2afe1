#!/usr/bin/env bash
# Slurm: sbatch distributed/deploy/slurm.sh   from the checkout's folder, on a file system that all nodes share.
# Ray 2.60.0 (constraints.txt) is installed in the environment DN_VENV; requeued jobs go on from their last checkpoint.
#SBATCH --job-name=dn-resnet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

source "${DN_VENV:?the folder of the environment}/bin/activate"
: "${DN_IMAGES:?the folder of images}" "${DN_RUNS:?the folder for runs}"

# Only this job's processes may talk to its cluster.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# symmetric-run starts Ray on all nodes, runs the command on the first and stops Ray when it ends.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus 1 -- \
  python distributed/cascade.py "${1:-paper-blind}" --data "$DN_IMAGES" --storage "$DN_RUNS" --workers "$SLURM_JOB_NUM_NODES" --cpus 4 --gpus 1
