"""Make a trained network's blocks depthwise-separable, one by one, on a cluster with Ray or in this process (the paper's section 3.2).

ray job submit --working-dir . -- python distributed/evolve.py ds-dn-resnet-13 --data /data/images --storage /data/runs --workers 4 --gpus 1
"""

from dn_cluster.command import run_script

if __name__ == "__main__":
    run_script(__doc__, plans=("evolve", "evolve-once"), other="cascade.py")
