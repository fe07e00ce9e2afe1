"""Replace a trained network's blocks by depthwise-separable ones, on a cluster or in this process.

One block is replaced in each stage, from the last to the first (the paper's section 3.2).

ray job submit --working-dir . -- python distributed/evolve.py ds-dn-resnet-13 --data /data/images
--storage /data/runs --workers 4 --gpus 1
"""

from dn_cluster.command import TrainingScript, run_training_script

if __name__ == "__main__":
    run_training_script(
        __doc__, TrainingScript(plans=("evolve", "evolve-once"), other="cascade.py")
    )
