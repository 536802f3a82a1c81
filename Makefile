# `make demo` runs the main job, `make test` the tests. Each sets up its own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint certify bench bench-full mutants clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/demo  ## Prove the kernels, train CNN2 on handwritten digits, export it, write a page about it
	@$(BIN)/kernelproof demo kernelproof-demo

test: lint  ## Format, lint, types, then every test
	@echo "== tests, a process for each core (a few hundred MB of memory each)"
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

lint: $(VENV)/dev
	@echo "== format and lint"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@echo "== types"
	@$(BIN)/pyright --pythonpath $(BIN)/python

certify: $(VENV)/dev  ## Prove the CPU kernels anew and keep the certificate that is shipped with them
	@$(BIN)/kernelproof verify --backend cpu --certificate kernels/certificates/cpu.json

bench: $(VENV)/bench  ## Time the CPU kernels beside PyTorch, ONNX Runtime and JAX, write docs/cpu.md: minutes on a quiet machine
	@$(BIN)/python benchmarks/cpu.py

bench-full: $(VENV)/bench  ## The same with whole networks' convolutions and how times scale: about an hour
	@$(BIN)/python benchmarks/cpu.py --full

mutants: $(VENV)/mutants  ## Plant every generic fault in specifications, generators and CPU kernels: days; a run resumes where it was left
	@$(BIN)/python benchmarks/mutants.py

clean:  ## Remove what the other targets made
	rm -rf $(VENV) build dist kernelproof-demo

$(BIN)/python:
	@echo "== a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -q -y python3-venv || { \
	    echo "$(PYTHON) has no venv module. On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo: pyproject.toml | $(BIN)/python
	@echo "== installing kernelproof with ONNX (about 250 MB with all it needs)"
	@$(BIN)/python -m pip install --progress-bar on --quiet --editable '.[onnx]'
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/python
	@echo "== installing kernelproof with all that its tests need (about 500 MB)"
	@$(BIN)/python -m pip install --progress-bar on --quiet --editable '.[dev]'
	@touch $@ $(VENV)/demo

$(VENV)/bench: $(VENV)/dev
	@echo "== installing PyTorch, ONNX Runtime and JAX"
	@$(BIN)/python -m pip install --progress-bar on --quiet --editable '.[bench]'
	@touch $@

$(VENV)/mutants: $(VENV)/dev
	@$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	@touch $@
