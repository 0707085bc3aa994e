"""`torch_compile: true` gives the same steps, and stops compiling once it has seen a few lengths."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import logged, starter_rows, train, write_rows

Write = Callable[..., Path]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ for the CPU")


@pytest.mark.parametrize(
    ("share", "backend"),
    [(True, "aot_eager"), pytest.param(False, "inductor", marks=needs_compiler)],
    ids=["shared", "packed, with inductor"],
)
def test_compiled_steps_are_the_same(
    share: bool,
    backend: str,
    write_config: Write,
    parallel_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from axolotl_clo.trainer import CLOTrainer

    write_rows(parallel_file, starter_rows()[:16])
    clo = {"target_lang": "de", "share_prompts": share}
    options: dict[str, Any] = {"clo": clo, "micro_batch_size": 2, "max_steps": 7}
    plain = train(write_config(**options))

    counters = torch._dynamo.utils.counters
    graphs: list[int] = []
    training_step = CLOTrainer.training_step

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = training_step(self, *args, **kwargs)
        graphs.append(counters["stats"]["unique_graphs"])
        return loss

    monkeypatch.setattr(CLOTrainer, "training_step", count)
    torch._dynamo.reset()
    counters.clear()
    try:
        options |= {"torch_compile": True, "torch_compile_backend": backend, "output_dir": str(tmp_path / "compiled")}
        compiled = train(write_config(**options))
        # Axolotl runs what fails to compile as it is; attention to shared prompts and pieces of logits are meant to.
        meant = ("_of_pairs", "_scores_of_pieces") if share else ("_scores_of_pieces",)
        assert all(any(name in reason for name in meant) for reason in counters["graph_break"]), counters["graph_break"]
    finally:
        torch._dynamo.reset()
    assert logged(compiled, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-4)
    assert 0 < graphs[0] <= graphs[3]
    assert set(graphs[3:]) == {graphs[3]}, graphs
