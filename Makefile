# `make quickstart` and `make test` set everything up in .venv first; PYTHON picks another interpreter.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin

export HF_HUB_OFFLINE ?= 1
export AXOLOTL_DO_NOT_TRACK ?= 1

.PHONY: quickstart compare test test-distributed lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m axolotl_clo.quickstart

# SFT, SFT then DPO, ORPO and CLO beside the base model; `make compare GRID=` takes the whole grid, which is for a GPU.
GRID ?= --small
compare: $(VENV)/.installed
	$(BIN)/python -m axolotl_clo.compare $(GRID)

# A process for each core, up to four: each takes about 1.5 GB. They are slow with more than one thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not distributed"

# Four processes, all engines and scopes, two hosts, Ray: what takes too long for every change.
test-distributed: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m distributed tests/distributed

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and by itself, so that the newest build is not fetched only to be replaced.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch>=2.11,<=2.13.0"
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) outputs build dist
