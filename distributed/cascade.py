"""Train a recipe on a cluster with Ray, or in this process: cascades (the paper's section 3.1) and single trainings.

ray job submit --working-dir . -- python distributed/cascade.py paper-blind --data /data/images --storage /data/runs --workers 4 --gpus 1
"""

from dn_cluster.command import run_script

if __name__ == "__main__":
    run_script(__doc__, plans=("cascade", "once"), other="evolve.py")
