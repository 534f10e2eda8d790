# The first interpreter that starts and is new enough. A name on PATH may be a shim for a version that is not there.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help reproduce reproduce-diffusion reproduce-flow paper example test test-all smoke smoke-lowest smoke-newest check docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

reproduce: .venv/.installed ## Train and evaluate on the phantom; SEED=1 for another seed
	$(BIN)/python recipes/run_all.py --seed $(SEED)

reproduce-diffusion: .venv/.installed ## The same with a diffusion model, at 32 x 32 pixels
	$(BIN)/python recipes/run_all.py --config recipes/configs/phantom_diffusion.yaml --seed $(SEED)

reproduce-flow: .venv/.installed ## The same with flow matching by a transformer, at 32 x 32 pixels
	$(BIN)/python recipes/run_all.py --config recipes/configs/phantom_flow.yaml --seed $(SEED)

paper: .venv/.installed ## Tables 1 and 2 and all figures of the paper on the phantom, three seeds, into outputs/paper
	for seed in 0 1 2; do \
		$(BIN)/python recipes/run_all.py --config recipes/configs/phantom_64.yaml --seed $$seed --utility --output_dir outputs/paper/seed$$seed || exit 1; \
	done
	$(BIN)/python recipes/report.py --runs outputs/paper/seed0 outputs/paper/seed1 outputs/paper/seed2 --output_dir outputs/paper

example: .venv/.installed ## Train the phantom at 64 x 64 pixels, and put its pipeline into the package as example model
	$(BIN)/python recipes/run_all.py --config recipes/configs/phantom_64.yaml
	$(BIN)/python recipes/make_example.py

# Two workers of one thread each: small tensors gain nothing from more threads, and threads of two workers collide.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: .venv/.installed ## Run the tests that take five minutes
	$(PYTEST) -m 'not slow'

test-all: test ## Run those, and then all that are marked slow
	$(PYTEST) -m slow

smoke: smoke-lowest smoke-newest ## Try the lowest and the newest versions that pyproject.toml allows

smoke-lowest smoke-newest: smoke-%: .venv-%/.installed
	OMP_NUM_THREADS=1 .venv-$*/bin/python tests/smoke.py

check: .venv/.installed ## Lint, format check, types, import layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.installed ## Build the documentation into docs/_build/html; needs no network
	$(BIN)/python -m sphinx --quiet --nitpicky --fail-on-warning --keep-going docs docs/_build/html

clean: ## Remove the virtual environment and all caches; outputs/ stays
	rm -rf .venv .venv-lowest .venv-newest .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist docs/_build
	find recipes softcft tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "softcft needs Python 3.11 or newer; put it on PATH or run make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# torch, by far the largest, is that of constraints.txt in both.
TORCH = $(shell grep '^torch==' constraints.txt)

.venv-lowest/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/smoke.py --lowest $(TORCH) > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable .
	touch $@

.venv-newest/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet $(TORCH) --editable .
	touch $@
