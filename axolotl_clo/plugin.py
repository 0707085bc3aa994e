"""The Axolotl plugin: wiring only, no maths.

Axolotl keeps one plugin manager for all runs of a process and, from 0.20 on, finds this plugin in every run on
a machine where it is installed. So each hook decides from the config it is given, keeps nothing on `self`, and
does nothing unless the config is a CLO run (`rl: clo`) or a run of another method on the same parallel rows (a
dataset with one of our types), which gets the same scope.

`rl` is a closed enum in Axolotl; `register` sees the raw YAML, takes `rl: clo` out and remembers it as
`clo.active`. With `rl` empty Axolotl builds its causal trainer, where a plugin may supply trainer and collator.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.logging import get_logger

from axolotl_clo.checks import ATTENTION_KERNELS, HELD_OUT, trains_on_parallel_rows, uses_parallel_rows
from axolotl_clo.cpu_processes import asked_for_cpu, join_cpu_processes, place_on_cpu
from axolotl_clo.datasets import check_folders, check_local_files, resolve_starter, training_entries
from axolotl_clo.schema import CLOConfig, select_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG = get_logger(__name__)


class CLOPlugin(BasePlugin):
    """Registers the training type `rl: clo` and the `clo:` section."""

    def register(self, cfg: Any) -> None:
        """Take `rl: clo` out of the raw config. Idempotent, as Ray workers register a second time.

        Raises:
            ValueError: an option of ours stands at top level, a dataset file is missing or broken, or nothing can be
                written where the run is to write.
        """
        for key in cfg:
            if isinstance(key, str) and (key.startswith("clo.") or key.startswith("clo__")):
                option = key.removeprefix("clo").lstrip("._")
                raise ValueError(
                    f"`{key}` at top level has no effect; write it as\nclo:\n  {option}: {cfg[key]}\n"
                    f"or override it with `accelerate launch -m axolotl.cli.train CONFIG --clo__{option}={cfg[key]}`"
                )
        section = cfg.get("clo")
        if section is not None and not isinstance(section, dict):
            raise ValueError(f"`clo:` is a section with options such as target_lang, got {section!r}")
        if cfg.get("rl") == "clo":
            cfg.pop("rl")
            cfg["clo"] = {**(section or {}), "active": True}
        active = (cfg.get("clo") or {}).get("active")
        if not active and not uses_parallel_rows(cfg):
            return
        join_cpu_processes(cfg)
        if active and cfg.get("remove_unused_columns") is None:
            cfg["remove_unused_columns"] = False
        if cfg.get("rl"):
            # The preference loaders map one function over the rows; ours must see them all at once.
            cfg["dataset_num_proc"] = 0
            for entry in cfg.get("test_datasets") or []:
                entry["type"] = HELD_OUT.get(entry.get("type"), entry.get("type"))
        if cfg.get("adapter") and (cfg.get("clo") or {}).get("train_modules") == "auto":
            # Their attention cannot run before it has its adapter, which is when the model is measured.
            for kernel in ATTENTION_KERNELS:
                if cfg.get(kernel) is None:
                    cfg[kernel] = False
        resolve_starter(cfg)
        if not cfg.get("use_ray") and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            check_local_files(cfg)
            check_folders(cfg)

    def get_input_args(self) -> str | None:
        """The `clo:` section; given once even if the plugin was loaded under two spellings of its name."""
        return "axolotl_clo.checks.CLOArgs" if self._is_first_of_its_kind() else None

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Axolotl loads the datasets; of the hooks before the model is placed, this one alone gets the whole config."""
        if _section(cfg) is not None:
            place_on_cpu(cfg)

    def pre_model_load(self, cfg: Any) -> None:
        """Check `clo.layers` against the model's config, before any weights are read."""
        clo = _section(cfg)
        if clo is not None and clo.layers is not None:
            from axolotl.loaders.utils import load_model_config

            select_layers(clo.layers, load_model_config(cfg).get_text_config().num_hidden_layers)

    def pre_lora_load(self, cfg: Any, model: PreTrainedModel) -> None:
        """Point LoRA at the chosen projections, by full path, where the user named no targets."""
        clo = _section(cfg)
        if clo is not None and cfg.adapter and not cfg.lora_target_modules and not cfg.lora_target_parameters:
            from axolotl_clo.attention import linear_paths

            cfg.lora_target_modules = linear_paths(model, _scope(cfg, model), clo.layers)

    def post_model_load(self, cfg: Any, model: PreTrainedModel) -> None:
        """Freeze what is outside `clo.train_modules` and print what trains."""
        clo = _section(cfg)
        if clo is None or not self._is_first_of_its_kind():
            return
        from axolotl_clo.attention import describe_trainable, restrict_training

        if not cfg.adapter:
            restrict_training(model, _scope(cfg, model), clo.layers)
            if (cfg.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
                # Reentrant checkpointing passes no gradient where no input needs one: frozen embeddings.
                model.enable_input_require_grads()
        LOG.info("clo: trainable parameters by module kind\n%s", describe_trainable(model))

    def get_trainer_cls(self, cfg: Any) -> type | None:
        if _active(cfg) is None:
            return None
        from axolotl_clo.trainer import CLOTrainer

        return CLOTrainer

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        """Let the trainer count the steps of an epoch itself where Axolotl, which counts examples, cannot; let a config
        for GPUs run on the CPU where that is asked for, in bf16 too."""
        clo = _section(cfg)
        if clo is None:
            return None
        arguments: dict[str, Any] = {"use_cpu": True} if asked_for_cpu() else {}
        if clo.active and clo.tokens_per_batch is not None:
            arguments["max_steps"] = cfg.max_steps or -1
            if cfg.warmup_steps is None:
                # What Axolotl itself takes where it does not know the number of steps.
                arguments["warmup_steps"] = 0.03 if cfg.warmup_ratio is None else cfg.warmup_ratio
        return arguments

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Keep what trains in float32; save the rows' template, so that the trained model is asked the same way."""
        if _section(cfg) is None:
            return
        from axolotl_clo.precision import keep_in_float32, keeps_no_copy

        if keeps_no_copy(cfg):
            keep_in_float32(trainer.model)
        if not trainer.processing_class.chat_template:
            from axolotl_clo.cross_lingual import resolve_chat_template

            tokenizer = trainer.processing_class
            entry = next(iter(training_entries(cfg)), None)
            tokenizer.chat_template = resolve_chat_template(tokenizer, cfg, entry)

    def post_train(self, cfg: Any, model: PreTrainedModel) -> None:
        """Save the trained model in the dtype it was read in; Axolotl calls this before it saves."""
        if _section(cfg) is not None:
            from axolotl_clo.precision import give_back

            give_back(model)

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[type, dict] | None:
        if _active(cfg) is None:
            return None
        from axolotl_clo.collator import CLOCollator

        return CLOCollator, {}

    def _is_first_of_its_kind(self) -> bool:
        plugins = PluginManager.get_instance().plugins.values()
        return next((p for p in plugins if isinstance(p, CLOPlugin)), self) is self


def _scope(cfg: Any, model: PreTrainedModel) -> str:
    """`clo.train_modules`, with `auto` resolved on the model before training and written back to `cfg`."""
    if cfg.clo.train_modules == "auto":
        from axolotl_clo.scope import resolve_scope

        cfg.clo.train_modules = resolve_scope(cfg, model)
    return cfg.clo.train_modules


def _section(cfg: Any) -> CLOConfig | None:
    """The `clo:` section if `cfg` is a run on parallel rows, CLO's or another method's, else None."""
    clo = CLOConfig.from_cfg(cfg)
    return clo if clo is not None and (clo.active or trains_on_parallel_rows(cfg)) else None


def _active(cfg: Any) -> CLOConfig | None:
    """The `clo:` section if `cfg` is a CLO run, else None."""
    clo = _section(cfg)
    return clo if clo is not None and clo.active else None
