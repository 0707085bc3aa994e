"""Writes every config here but quickstart.yml: `python example_configs/generate.py`.

A further model, language or method is one more entry of MODELS, LANGUAGES or METHODS; the papers' grid has
the methods in PAPER_METHODS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

FOLDER = Path(__file__).parent
HAND_WRITTEN = ("quickstart.yml",)

# Parallel rows in one optimizer step on one GPU, the same for all methods.
ROWS_A_STEP = 16


@dataclass(frozen=True)
class Model:
    """A base model.

    Attributes:
        title: its name in prose.
        hub: its name on the hub.
        rows: parallel rows in a micro batch of CLO or SFT.
    """

    title: str
    hub: str
    rows: int


@dataclass(frozen=True)
class Method:
    """A way to train on parallel rows.

    Attributes:
        title: what follows the model's name in the first line.
        type: the dataset type that makes its examples.
        examples: examples one row becomes.
        unit: those examples in words, where there are several.
        learning_rate: with its source as a comment.
        options: lines of Axolotl's own section, `rl:` first.
    """

    title: str
    type: str
    examples: int
    unit: str
    learning_rate: str
    options: str = ""


MODELS = {
    "llama-3-8b": Model("Llama-3-8B", "meta-llama/Meta-Llama-3-8B", rows=2),
    "llama-2-7b": Model("Llama-2-7B", "meta-llama/Llama-2-7b-hf", rows=2),
    "llama-2-13b": Model("Llama-2-13B", "meta-llama/Llama-2-13b-hf", rows=1),
    "mistral-7b": Model("Mistral-7B", "mistralai/Mistral-7B-v0.1", rows=2),
    "qwen2.5-3b": Model("Qwen2.5-3B", "Qwen/Qwen2.5-3B", rows=4),
}
LANGUAGES = {"zh": "Chinese", "de": "German", "ko": "Korean", "id": "Indonesian", "sw": "Swahili", "yo": "Yoruba"}
LOW_RESOURCE = {"sw", "yo"}

OURS = "1e-5  # ours, untuned"
DPO_RATE = "5e-7  # that of Zephyr's DPO, where all parameters train; untuned here"
DPO_OPTIONS = """\
rl: dpo
# β of arXiv 2305.18290, the usual value. The reference is a second copy of the model in memory.
rl_beta: 0.1

"""
IPO_OPTIONS = """\
rl: ipo
# τ of arXiv 2310.12036, at TRL's default. The reference is a second copy of the model in memory.
rl_beta: 0.1

"""
ORPO_OPTIONS = """\
rl: orpo
# λ of arXiv 2403.07691, at its authors' value for Mistral-7B. There is no reference model.
orpo_alpha: 0.1

"""
SIMPO_OPTIONS = """\
rl: simpo
# β and γ of arXiv 2405.14734, at its authors' values for Llama-3-8B. SimPO has no NLL, which cpo_alpha would weigh.
rl_beta: 2.0
simpo_gamma: 1.0
cpo_alpha: 0.0

"""
KTO_OPTIONS = """\
rl: kto
# β of arXiv 2402.01306, at TRL's default. TRL loads the reference itself, in 32 bits: twice the size of the model.
rl_beta: 0.1
remove_unused_columns: false

"""

METHODS = {
    "clo": Method("learns {language} with CLO", "cross_lingual", 1, "", OURS, "rl: clo\n"),
    "sft": Method("learns {language} by SFT on English and {language}", "sft", 2, "2 examples", OURS),
    "sft_source": Method("by SFT on the English side of the {language} rows", "sft_source", 1, "", OURS),
    "sft_target": Method("learns {language} by SFT on {language} alone", "sft_target", 1, "", OURS),
    "sft_dpo": Method("learns {language} by SFT, then DPO", "preference", 2, "2 pairs", DPO_RATE, DPO_OPTIONS),
    "dpo": Method("learns {language} with DPO, without SFT before", "preference", 2, "2 pairs", DPO_RATE, DPO_OPTIONS),
    "ipo": Method("learns {language} with IPO", "preference", 2, "2 pairs", "5e-7  # as for DPO, untuned", IPO_OPTIONS),
    "orpo": Method(
        "learns {language} with ORPO",
        "preference",
        2,
        "2 pairs",
        "5e-6  # that of ORPO's authors for Mistral-7B, where all parameters train; untuned here",
        ORPO_OPTIONS,
    ),
    "simpo": Method(
        "learns {language} with SimPO",
        "preference",
        2,
        "2 pairs",
        "6e-7  # that of SimPO's authors for Llama-3-8B, where all parameters train; untuned here",
        SIMPO_OPTIONS,
    ),
    "kto": Method(
        "learns {language} with KTO",
        "kto",
        4,
        "4 completions",
        "1e-6  # TRL advises no more at this β; untuned here",
        KTO_OPTIONS,
    ),
}

# Compared in arXiv 2505.14297; ORPO is from "Exploring Language Transfer Techniques in Large Language Models".
PAPER_METHODS = ("clo", "sft", "sft_source", "sft_target", "sft_dpo", "orpo")

DEFAULTS_NOTE = """\
  # λ, β, scope and the rest keep the defaults of the README.
"""
LOW_RESOURCE_NOTE = """\
  # For very low-resource languages the paper found full training far better (Swahili 69.6 to 29.7 win rate). If the
  # memory allows, compare with:
  # train_modules: all
"""
BASELINE_NOTE = """\
  # Attention alone trains, as with CLO, so that a comparison changes one thing. To train all parameters:
  # train_modules: all
"""
PAPER_CLO_NOTE = """\
  # Attention alone trains, as in the paper; λ and β keep our defaults. To train all parameters:
  # train_modules: all
"""
PAPER_ROWS_NOTE = """\
  # The paper compares 6,400 rows with 3,200. To draw fewer, the same ones for every method:
  # max_examples: 3200
"""
SEVERAL_NOTE = """\
  # A language with n rows is drawn with a share of n^(1/T): T = 1 leaves the data as it is, a higher T evens the
  # languages out. The starter rows are equally many in each.
  sampling_temperature: 2.0
"""
ADAPTER_NOTE = """\
  # The reference is the model with its adapter off; `precompute` would save a pass per step at the cost of one before.
  reference: adapter
"""
ADAPTER_OPTIONS = """\
lora_r: 32
lora_alpha: 64
lora_dropout: 0.0
# No lora_target_modules: the attention projections are found, by full path.

"""
ADAPTER_RATE = "1e-4  # ours, untuned"

# How the state of training is shared by several GPUs, and how activations are recomputed under it.
SEVERAL_GPUS = """\
gradient_checkpointing: true

# Several GPUs hold a copy of the model each. To share gradients and optimizer states among them, take off the mark:
# deepspeed: example_configs/deepspeed/zero2.json
"""
ZERO3 = """\
gradient_checkpointing: true

# The GPUs share weights, gradients and optimizer states; zero3_offload.json keeps weights and states in main memory.
deepspeed: example_configs/deepspeed/zero3.json
"""
FSDP2 = """
# The GPUs share weights, gradients and optimizer states; `offload_params: true` keeps them in main memory.
fsdp_version: 2
fsdp_config:
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  reshard_after_forward: true
  cpu_ram_efficient_loading: true
  activation_checkpointing: true  # in place of gradient_checkpointing
  state_dict_type: FULL_STATE_DICT  # transformers loads what is saved as it is
"""
SHARDING = {"": SEVERAL_GPUS, "zero3": ZERO3, "fsdp2": FSDP2}


@dataclass(frozen=True)
class Run:
    """One config: a method, the languages it adds and the model it trains.

    Attributes:
        paper: whether it is part of the papers' grid.
        adapter: `lora`, `qlora` or none.
        sharding: how several GPUs share the work, one of SHARDING.
    """

    method: str
    languages: tuple[str, ...] = ("ko",)
    model: str = "llama-3-8b"
    paper: bool = False
    adapter: str = ""
    sharding: str = ""

    @property
    def file(self) -> str:
        """Where the config lies in this folder."""
        if self.paper:
            return f"paper/{self.model}/{'_'.join(self.languages)}/{self.method}.yml"
        return "_".join(filter(None, (self.method, *self.languages, self.adapter, self.sharding))) + ".yml"

    @property
    def output_dir(self) -> str:
        """Where the trained model goes."""
        if self.paper:
            return f"./outputs/paper/{self.model}/{'_'.join(self.languages)}/{self.method}"
        parts = (self.model, self.method.replace("_", "-"), *self.languages, self.adapter, self.sharding)
        return "./outputs/" + "-".join(filter(None, parts))

    @property
    def title(self) -> str:
        language = " and ".join(LANGUAGES[code] for code in self.languages)
        adapter = {"": "", "lora": "by LoRA ", "qlora": "by 4-bit QLoRA "}[self.adapter]
        title = METHODS[self.method].title.format(language=language).replace("with CLO", f"{adapter}with CLO")
        title += {"": "", "zero3": " under ZeRO-3", "fsdp2": " under FSDP2"}[self.sharding]
        return f"{MODELS[self.model].title} {title}"

    @property
    def base_model(self) -> str:
        """The model on the hub, or what the stage before wrote, under a line that names that stage."""
        if self.method != "sft_dpo":
            return f"base_model: {MODELS[self.model].hub}"
        first = replace(self, method="sft")
        return (
            f"# The second stage; `axolotl train example_configs/{first.file}` writes the model it starts from.\n"
            f"base_model: {first.output_dir}"
        )

    @property
    def notes(self) -> str:
        """The lines of the `clo:` section below its languages."""
        if self.method != "clo":
            notes = BASELINE_NOTE
        elif self.adapter:
            notes = ADAPTER_NOTE
        elif len(self.languages) > 1:
            notes = SEVERAL_NOTE
        elif not LOW_RESOURCE.isdisjoint(self.languages):
            notes = LOW_RESOURCE_NOTE
        else:
            notes = PAPER_CLO_NOTE if self.paper else DEFAULTS_NOTE
        return notes + PAPER_ROWS_NOTE * self.paper

    @property
    def adapter_options(self) -> str:
        if not self.adapter:
            return ""
        return f"adapter: {self.adapter}\n" + "load_in_4bit: true\n" * (self.adapter == "qlora") + ADAPTER_OPTIONS

    @property
    def held_out(self) -> str:
        """What the evaluations during training hold out: nothing in the papers' grid, so that all rows train."""
        if self.paper:
            return "# Every method trains on all rows. Score the trained model with `lm_eval`.\nval_set_size: 0.0"
        if METHODS[self.method].examples * len(self.languages) == 1:
            return "val_set_size: 0.05"
        return "# Examples are held out, not rows: the others of the same row are trained on.\nval_set_size: 0.05"

    @property
    def steps(self) -> str:
        """Batch sizes, so that a step has the same rows in all methods."""
        method = METHODS[self.method]
        rows = MODELS[self.model].rows
        if method.type in ("preference", "kto"):  # they hold all logits, and mostly a reference
            rows = max(1, rows // 2)
        if len(self.languages) > 1:
            note = f"{ROWS_A_STEP} examples a step on one GPU; a row is one for each of its target languages."
        elif method.examples > 1:
            note = f"{ROWS_A_STEP} rows a step on one GPU, as for every method here; a row is {method.unit}."
        else:
            note = f"{ROWS_A_STEP} rows a step on one GPU, as for every method here."
        return (
            f"# {note}\nmicro_batch_size: {rows * method.examples}\ngradient_accumulation_steps: {ROWS_A_STEP // rows}"
        )

    def yaml(self) -> str:
        """The text of the config."""
        method = METHODS[self.method]
        line_end = "\n# " if self.paper else " "
        keys = ", ".join(f'"{code}": …' for code in ("en", *self.languages))
        target = self.languages[0] if len(self.languages) == 1 else f"[{', '.join(self.languages)}]"
        rate = ADAPTER_RATE if self.adapter else method.learning_rate
        warmup = "warmup_steps: 10  # SimPO's trainer takes no ratio" if self.method == "simpo" else "warmup_ratio: 0.1"
        evaluations = "" if self.paper else "evals_per_epoch: 4\n"
        return f"""\
# {self.title}:{line_end}`axolotl train example_configs/{self.file}`
{self.base_model}
plugins:
  - axolotl_clo.CLOPlugin

{method.options}clo:
  target_lang: {target}
{self.notes}
{self.adapter_options}\
# Put your own parallel rows here: a JSONL or Parquet file, a folder, or a hub dataset, with rows such as
# {{"prompt": {{{keys}}}, "response": {{{keys}}}}}. The paper used 6,400; the
# 128 starter rows named here show that all works.
datasets:
  - path: axolotl_clo/starter
    type: axolotl_clo.{method.type}
dataset_prepared_path: last_run_prepared
{self.held_out}
output_dir: {self.output_dir}

# Alpaca is plain text, so it needs no token the frozen embeddings never learnt; most base models have no template.
chat_template: alpaca
sequence_len: 2048
excess_length_strategy: drop

{self.steps}
num_epochs: 2
optimizer: adamw_torch_fused
lr_scheduler: cosine
learning_rate: {rate}
{warmup}
weight_decay: 0.0

bf16: true
tf32: false
attn_implementation: flash_attention_2
{SHARDING[self.sharding]}
logging_steps: 1
{evaluations}saves_per_epoch: 1
save_total_limit: 2
seed: 42

wandb_project:
wandb_name:
"""


RUNS = [
    *(Run("clo", (language,)) for language in LANGUAGES),
    *(Run("clo", adapter=adapter) for adapter in ("lora", "qlora")),
    *(Run("clo", sharding=sharding) for sharding in SHARDING if sharding),
    Run("clo", ("ko", "sw")),
    *(Run(method) for method in METHODS if method != "clo"),
    *(
        Run(method, (language,), model, paper=True)
        for model in MODELS
        for language in LANGUAGES
        for method in PAPER_METHODS
    ),
]


def all_yamls() -> dict[str, str]:
    """Path in this folder to text, for every config but the hand-written."""
    return {run.file: run.yaml() for run in RUNS}


if __name__ == "__main__":
    for old in (FOLDER / "paper").rglob("*.yml"):
        old.unlink()
    for name, text in all_yamls().items():
        file = FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
