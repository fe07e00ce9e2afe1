"""Train one recipe on a cluster with Ray, or in this process: a cascade or a single stage.

A cascade trains the network in stages and adds a block in each (the paper's section 3.1).

ray job submit --working-dir . -- python distributed/cascade.py paper-blind --data /data/images
--storage /data/runs --workers 4 --gpus 1
"""

from dn_cluster.command import TrainingScript, run_training_script

if __name__ == "__main__":
    run_training_script(__doc__, TrainingScript(plans=("cascade", "once"), other="evolve.py"))
