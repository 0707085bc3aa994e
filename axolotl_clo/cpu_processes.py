"""Several processes without a GPU: DDP, DeepSpeed and FSDP on the CPU, for trying a config before renting GPUs.

Accelerate and Axolotl know how many processes there are, and where a rank's model belongs, by looking for CUDA devices.
Without any, two processes are two runs that do not know of one another, `deepspeed:` is ignored and FSDP becomes DDP,
each without a word. What is settled here is settled only where `ACCELERATE_USE_CPU=true` asks for it and no CUDA device
is there: nothing changes on a GPU.
"""

from __future__ import annotations

import os
from typing import Any

_ASKED, _DEVICE = "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"


def join_cpu_processes(cfg: Any) -> None:
    """Let the processes of this run find one another over gloo, under the engine the config names.

    Args:
        cfg: raw config, before Axolotl has looked for devices.

    Raises:
        ValueError: there are several processes, no GPU, and nothing says that they are meant to run on the CPU.
    """
    if not _several_without_gpu():
        return
    if not asked_for_cpu():
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes were started and no CUDA device is there: each would train a model "
            f"of its own. Set {_ASKED}=true to run them on the CPU, or start one process"
        )
    os.environ[_DEVICE] = "cpu"  # Ray names the GPU it was told of
    if cfg.get("deepspeed"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _shard_over_cpu("NO")
        _step_without_gradients()
    elif cfg.get("fsdp_config") or cfg.get("fsdp"):
        _shard_over_cpu("MULTI_GPU")  # the type that Accelerate turns into FSDP
        _mesh_of_cpus()


def asked_for_cpu() -> bool:
    """Whether training is to run on the CPU, in one process or several, and no CUDA device is there."""
    asked = os.environ.get(_ASKED, "").lower() in ("1", "true", "yes")
    if not asked and os.environ.get(_DEVICE) != "cpu":
        return False
    import torch

    return not torch.cuda.is_available()


def place_on_cpu(cfg: Any) -> None:
    """Take back Axolotl's device map, which sends the model of rank 1 to device 1; CPU processes have none."""
    if _several_without_gpu():
        cfg.device_map = None


def _several_without_gpu() -> bool:
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    import torch

    return not torch.cuda.is_available()


def _shard_over_cpu(distributed_type: str) -> None:
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    # With this switch on, Accelerate does not look at DeepSpeed or FSDP; the device says the same.
    os.environ.pop(_ASKED, None)
    answer = ("gloo", DistributedType[distributed_type])
    PartialState._prepare_backend = lambda *_args, **_kwargs: answer


def _step_without_gradients() -> None:
    """DeepSpeed gathers weights after a step into views of one tensor, which gloo refuses where autograd watches."""
    import torch
    from deepspeed.runtime.engine import DeepSpeedEngine

    DeepSpeedEngine.step = torch.no_grad()(DeepSpeedEngine.step)


def _mesh_of_cpus() -> None:
    """Axolotl asks for a mesh of CUDA devices by name."""
    from accelerate import ParallelismConfig

    build = ParallelismConfig.build_device_mesh
    ParallelismConfig.build_device_mesh = lambda self, _device_type: build(self, "cpu")
