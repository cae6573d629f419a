# `make test` runs every check; `make train` trains a small diffusion policy. Both set up .venv first.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that is new enough.
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

PACKAGES := diffpolicy objectives collectors
# Two test processes with one thread each; `make test WORKERS=0` runs the tests in one process.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

# `make train ENV=Hopper-v5 TRAIN_FLAGS="--total-frames 1000000"`
ENV ?= InvertedPendulum-v5
# A new folder for every run; a folder that already holds one is refused.
OUTPUT ?= runs/$(ENV)-$(shell date +%Y%m%d-%H%M%S)
TRAIN_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test lint unit doctest docs test-slow test-gpu test-versions bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## create .venv and install the library with its development tools

$(STAMP): pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error Python 3.11 or newer was not found; give it as PYTHON=/path/to/python3.11))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: $(STAMP) ## train DiffPPO on a small task; results in runs/
	$(BIN)/python examples/diffppo_lightning.py --env $(ENV) --output $(OUTPUT) $(TRAIN_FLAGS)

test: lint unit doctest ## all checks: lint, types, import layers, tests, doctests

lint: $(STAMP) ## ruff, mypy and the import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: $(STAMP) ## the tests, without the slow ones
	$(BIN)/python -m pytest -n $(WORKERS)

doctest: $(STAMP) ## the examples in the docstrings
	$(BIN)/python -m pytest --doctest-modules $(PACKAGES)

docs: $(STAMP) ## the site of the documentation, in build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file docs/site/mkdocs.yml
	@echo "open build/docs/index.html"

test-slow: $(STAMP) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP) ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

# `make test-versions INSTALL=1 TORCH="2.13.0 2.14.1"` first installs what is missing.
test-versions: $(STAMP) ## the tests in every Python and with every torch that this machine has
	$(BIN)/python .ci/versions.py $(if $(INSTALL),--install) $(if $(TORCH),--torch $(TORCH) --) $(TESTS)

# The usual options contain --benchmark-skip, which excludes --benchmark-only.
bench: $(STAMP) ## time the hot paths
	$(BIN)/python -m pytest -o addopts="--import-mode=importlib --strict-markers" \
		--benchmark-only tests/benchmarks

clean: ## remove caches and build results; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks \
		.import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
