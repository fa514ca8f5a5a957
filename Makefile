# GradAlign: `make demo` and `make test` work on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
# auto, cpu, default (CUDA on Linux), cu130, or the URL of an index: deploy/install_torch.py
TORCH_INDEX ?= auto
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCS   := $(VENV)/.docs
# Tests at a time
WORKERS ?= 3
# One torch thread per process: the tests and the demo run two processes side by side.
export OMP_NUM_THREADS ?= 1
# Images of containers often set it: each process that a test starts would compile our sources again, and pytest all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo reproduce test test-long test-fast test-matrix test-adapters lint format bench bench-sketch bench-scorer serve docs docs-serve reference \
	release-check clean
help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv and install everything into it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "gradalign needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "==> 1/3 making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "python3 has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "==> 2/3 installing $(TORCH) (set TORCH=... for another version, TORCH_INDEX=default for CUDA)"
	@$(BIN)/python deploy/install_torch.py "$(TORCH_INDEX)" "$(TORCH)" --quiet --disable-pip-version-check
	@echo "==> 3/3 installing gradalign with the scorer, the trainer and the test tools"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[reasoning]' 2>$(VENV)/reasoning.log || \
		echo "==> without reasoning_gym, and its tests are skipped: it needs a C compiler to install ($(VENV)/reasoning.log)"
	@touch $(STAMP)
	@echo "==> installed; $$($(BIN)/gradalign --version)"

demo: $(STAMP) ## train a tiny model by GRPO, choosing problems at random and by alignment
	@$(BIN)/gradalign demo

reproduce: $(STAMP) ## measure the paper's claims: all regimes, methods and seeds; ARGS=--quick takes minutes, not hours
	@$(BIN)/gradalign reproduce $(ARGS)

serve: $(STAMP) ## run the scorer on 127.0.0.1:8000 with an embedded store
	@$(BIN)/gradalign serve

test: $(STAMP) ## run the tests; ARGS=... goes to pytest
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long" $(ARGS)

test-long: $(STAMP) ## run what does the same once more with more processes, rounds or sizes, and the demo
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long $(ARGS)

test-fast: $(STAMP) ## unit and property tests that are not marked slow, for the inner loop
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not long" tests/unit tests/property $(ARGS)

test-matrix: $(STAMP) ## make test by two instruction sets, one and two threads, and beside a load; a table at the end
	@ARGS="$(ARGS)" PYTHON=$(BIN)/python tests/matrix.sh

test-adapters: ## the adapters' tests against releases of trainers, in environments of their own; ONLY=name for one
	@$(PYTHON) scripts/adapters.py --torch "$(TORCH)" --index "$(TORCH_INDEX)" --workers $(WORKERS) --only "$(ONLY)" -- $(ARGS)

lint: $(STAMP) ## ruff and mypy --strict
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(STAMP) ## ruff's formatter and fixes
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

$(DOCS): pyproject.toml $(STAMP)
	@echo "==> installing what builds the site"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $(DOCS)

docs: $(DOCS) ## build the documentation site into site/; a link or an anchor that leads nowhere fails
	@$(BIN)/python scripts/reference.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

docs-serve: $(DOCS) ## show the site on 127.0.0.1:8001 while you write
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

reference: $(STAMP) ## write docs/cli.md and docs/settings.md anew from the code
	@$(BIN)/python scripts/reference.py

release-check: ## build sdist and wheel, install them in empty environments and run them
	@$(PYTHON) scripts/release_check.py --torch "$(TORCH)"

bench-scorer: $(STAMP) ## the scorer's: throughput, latency, memory, the pass over the sketches, the store
	@for bench in bench_scorer bench_kernel bench_store; do echo "==> $$bench"; $(BIN)/python tests/bench/$$bench.py || exit 1; done

bench: bench-sketch bench-scorer ## every benchmark; figures go to docs/

bench-sketch: $(STAMP) ## what sketches cost and how true they are; PEERS=folder (make_peers.sh) for the side by side
	@$(BIN)/python tests/bench/bench_sketch.py
	@$(BIN)/torchrun --nproc-per-node 2 tests/bench/bench_sharded.py
	@$(BIN)/python tests/bench/bench_fidelity.py
	@if [ -n "$(PEERS)" ]; then PYTHONPATH=proto:services/trainer $(PEERS)/bin/python tests/bench/bench_peers.py; fi

clean: ## remove what make made
	rm -rf $(VENV) .venv-adapters site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
