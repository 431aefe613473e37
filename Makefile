# The one door: run test lint types docs wheels check. `make` alone says what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/python scripts/uv.py
PACKAGES := libs/base services/objectstore services/gcs services/raylet libs/core
INSTALLED := $(VENV)/.installed

# What an installation is made of. Editable: Python files are read from where they lie.
SOURCES := pyproject.toml constraints.txt constraints-build.txt scripts/uv.py Makefile \
	$(foreach p,$(PACKAGES),$(wildcard $(p)/pyproject.toml $(p)/setup.py)) \
	$(shell find libs services \( -name '*.proto' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' \) -not -path '*/build/*' 2>/dev/null)

.PHONY: help setup run test lint types docs wheels check clean

help:
	@grep -E '^## ' Makefile | sed 's/^## //'

## make setup    the environment in .venv, everything built and installed in it
setup: $(INSTALLED)

$(INSTALLED): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Shoal needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	command -v c++ >/dev/null || { echo 'A C++ compiler is missing. On Debian or Ubuntu: apt install g++ python3-dev python3-venv make' >&2; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { echo 'python3 -m venv failed. On Debian or Ubuntu: apt install python3-venv' >&2; rm -rf $(VENV); exit 1; }
	[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --build-constraint constraints-build.txt \
		$(foreach p,$(PACKAGES),--editable $(p)) --group dev
	touch $@

## make run      the quickstart: an inverted index over the standard library's own source files
run: setup
	@$(BIN)/python examples/quickstart.py

## make test     lint, all tests, and the wheels in a clean environment
test: setup lint
	@$(BIN)/python -m pytest libs services tests
	$(BIN)/python -m pytest --doctest-modules libs/base/src
	$(MAKE) --no-print-directory wheels

## make lint     ruff and the import contracts
lint: setup
	@$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --cache-dir .import_linter_cache > .import_linter.out || { cat .import_linter.out; exit 1; }
	rm -f .import_linter.out

## make types    mypy, each package by itself
types: setup
	@for package in $(PACKAGES); do echo "== $$package"; $(BIN)/mypy --no-error-summary $$package/src || failed=1; done; exit $${failed:-0}

## make wheels   builds every wheel, installs them in a clean environment outside the repository, and runs the quickstart there
wheels: setup
	@$(BIN)/python scripts/check_wheels.py

## make check    what a change must pass: test and types
check: test types

## make clean    removes what was built, and the environment
clean:
	@rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache uv.lock
	find libs services \( -name build -o -name '*.egg-info' -o -name __pycache__ \) -type d -prune -exec rm -rf {} +
	find libs services \( -name '*.so' -o -name '*_pb2.py' -o -name '*_pb2.pyi' -o -name '*_pb2_grpc.py' \) -delete
