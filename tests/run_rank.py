"""One rank of a distributed training test: trains the config named on the command line, prints what it ran on."""

import sys

from conftest import logged, train

if __name__ == "__main__":
    trainer = train(sys.argv[1])
    state = trainer.accelerator.state
    # One write each, so that lines of two ranks do not mix.
    sys.stdout.write(f"RANK ran on {state.distributed_type.value} with {state.num_processes} processes\n")
    if state.process_index == 0:
        loss, nll = logged(trainer, "loss")[0], logged(trainer, "clo/nll")[0]
        sys.stdout.write(f"RANK0 loss {loss} \nRANK0 nll {nll} \n")
    sys.stdout.flush()
