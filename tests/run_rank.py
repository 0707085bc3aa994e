"""One rank of a distributed training test: trains the config named on the command line, prints what it ran on."""

import sys

from axolotl.common.datasets import load_datasets
from axolotl.train import train
from conftest import load_config, logged

if __name__ == "__main__":
    cfg = load_config(sys.argv[1])
    cfg.device_map = None  # Axolotl maps rank 1 to device 1, which CPU processes do not have
    trainer = train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))[2]
    state = trainer.accelerator.state
    # One write each, so that lines of two ranks do not mix.
    sys.stdout.write(f"RANK ran on {state.distributed_type.value} with {state.num_processes} processes\n")
    if state.process_index == 0:
        loss, nll = logged(trainer, "loss")[0], logged(trainer, "clo/nll")[0]
        sys.stdout.write(f"RANK0 loss {loss} \nRANK0 nll {nll} \n")
    sys.stdout.flush()
