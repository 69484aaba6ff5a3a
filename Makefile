# `make demo` and `make test` set up all they need in .venv; nothing else on the machine is changed.
VENV := .venv
BIN := $(VENV)/bin
# The pip wheel's Triton needs NumPy 1, which has wheels up to Python 3.12.
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.11,$(shell $(p) -c 'import sys; print("$(p)" if (3, 11) <= sys.version_info < (3, 13) else "")' 2>/dev/null)))
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format clean

help:  ## Show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Set up .venv: gati, a real Triton, perf_analyzer

$(INSTALLED): pyproject.toml constraints.txt scripts/install-perf-analyzer.sh
	@test -n "$(PYTHON)" || { echo "gati needs Python 3.11 or 3.12; set PYTHON=/path/to/it" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps nvidia-pytriton==0.7.0
	scripts/install-perf-analyzer.sh $(VENV)
	@touch $@

demo: $(INSTALLED)  ## Run the whole of it on handwritten digits; results in demo/
	$(BIN)/gati demo --output demo

test: $(INSTALLED)  ## Run all tests, against a real Triton
	@# the tests of a file share servers, and wait for these a third of the time; what they start finds modules compiled;
	@# tests/conftest.py says which files come first
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 GATI_THREADS=1 $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(INSTALLED)  ## Put the code into its style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove what make has made
	rm -rf $(VENV) demo build .pytest_cache .ruff_cache
