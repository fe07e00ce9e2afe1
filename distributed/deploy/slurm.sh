#!/usr/bin/env bash
# Slurm job: run `sbatch distributed/deploy/slurm.sh RECIPE` from the checkout's folder, on a file system that all nodes share.
# DN_VENV is an environment with Ray 2.60.0 (constraints.txt). A requeued job resumes from its last checkpoint.
#SBATCH --job-name=dn-resnet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

source "${DN_VENV:?set it to the folder of the Python environment}/bin/activate"
: "${DN_IMAGES:?set it to the folder of images}" "${DN_RUNS:?set it to the folder for runs}"

# A token keeps other users out of this job's cluster.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# symmetric-run starts Ray on all nodes, runs the command on the first one, and stops Ray when it ends.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus 1 -- \
  python distributed/cascade.py "${1:-paper-blind}" --data "$DN_IMAGES" --storage "$DN_RUNS" --workers "$SLURM_JOB_NUM_NODES" --cpus 4 --gpus 1
