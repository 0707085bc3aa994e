"""`axolotl train CONFIG --use-ray` with two workers on this machine, where Ray is told of two GPUs that are not there.

The launcher asks for a GPU for each worker, and Ray then for NCCL, which needs one; gloo is all that differs here.
"""

import functools
import sys

import ray
import ray.train.torch
from axolotl.cli.train import do_cli

if __name__ == "__main__":
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False)
    ray.train.torch.TorchTrainer = functools.partial(
        ray.train.torch.TorchTrainer, torch_config=ray.train.torch.TorchConfig(backend="gloo")
    )
    do_cli(config=sys.argv[1], use_ray=True, ray_num_workers=2)
