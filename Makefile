# The one door. `make` alone says what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/python scripts/uv.py
PYTEST := $(BIN)/python -m pytest
# In the order of their imports.
CORE := libs/base services/objectstore services/gcs services/raylet libs/core
LIBRARIES := libs/data libs/train libs/tune libs/serve libs/rl
PACKAGES := $(CORE) $(LIBRARIES)

# What an installation is made of. Editable: Python files are read from where they lie; metadata, contracts and what is compiled are not.
BUILT_FROM := pyproject.toml constraints.txt constraints-build.txt scripts/uv.py Makefile \
	$(foreach p,$(PACKAGES),$(wildcard $(p)/pyproject.toml $(p)/setup.py)) \
	$(shell find $(PACKAGES) \( -name '*.proto' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.h' \) -not -path '*/build/*' 2>/dev/null)

.PHONY: help setup system s3 run test quick lint types unit e2e sim scale soak chaos figures kills bench network foreign wrk learn docs wheels check clean

help:
	@grep -E '^## ' Makefile | sed 's/^## //'

## make setup    the environment in .venv, everything built and installed in it
setup: $(VENV)/.installed

$(VENV)/.installed: $(BUILT_FROM)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Shoal needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	command -v c++ >/dev/null || { echo 'A C++ compiler is missing. On Debian or Ubuntu: apt install g++ python3-dev python3-venv' >&2; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { echo 'python3 -m venv failed. On Debian or Ubuntu: apt install python3-venv' >&2; rm -rf $(VENV); exit 1; }
	[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --build-constraint constraints-build.txt \
		$(foreach p,$(PACKAGES),--editable $(p)) --group dev
	$(BIN)/python -m compileall -q $(addsuffix /src,$(PACKAGES))
	touch $@

# An S3 for the tests, in an environment of its own: moto wants another python-dateutil than pandas does.
s3: $(VENV)/moto/bin/moto_server

$(VENV)/moto/bin/moto_server: $(VENV)/.installed constraints-moto.txt
	$(BIN)/python -m venv --without-pip $(VENV)/moto
	$(UV) pip install --quiet --python $(VENV)/moto/bin/python --constraint constraints-moto.txt 'moto[s3,server]'
	touch $@

# What the tests need from the system.
system: setup
	@scripts/system.sh $(BIN)/python

## make run      the quickstart, on the core alone; then a model from its data to an HTTP endpoint, with all libraries
run: setup
	@$(BIN)/python examples/quickstart.py
	$(BIN)/python examples/end_to_end.py

## make test     lint, all tests, and the wheels in a clean environment
test: lint docs wheels unit e2e

## make quick    lint, and the tests of the packages until the first failure
quick: lint
	@$(PYTEST) libs -x

## make lint     ruff and the import contracts
lint: setup
	@$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --no-cache --no-logo >$(VENV)/lint-imports.txt || { cat $(VENV)/lint-imports.txt; exit 1; }
	$(BIN)/python scripts/check_layers.py

## make types    mypy
types: setup
	@$(BIN)/mypy $(foreach p,$(PACKAGES),$(p)/src) benchmarks/*.py services/objectstore/benchmarks/*.py

## make unit     the packages' own tests
unit: setup system s3
	# Two processes: the libraries look for arenas that are left open at their session's end, and the services' tests make arenas of their own.
	@$(PYTEST) libs
	@$(PYTEST) services

## make e2e      whole programs on whole clusters
e2e: setup
	@$(PYTEST) tests

## make sim      the simulation with SEEDS (10,000) seeds
sim: setup
	@$(BIN)/python tests/sim/history.py --seeds $${SEEDS:-10000}

## make scale    the simulation of 100, 1,000 and 5,000 nodes: a table
scale: setup
	@PYTHONHASHSEED=0 $(BIN)/python tests/sim/scale.py

## make soak     many clusters begun, ended and killed, and ten million objects put and freed; nothing may be left
soak: setup
	@SHOAL_CHURN=10000000 $(PYTEST) -s services/objectstore/tests/test_arena.py -k flat
	SHOAL_SOAK_CYCLES=100 SHOAL_SOAK_KILLS=20 $(PYTEST) tests/cluster/test_lifecycle.py --timeout 1200

## make chaos    MINUTES (10) of faults from a SEED, against real processes on machines of their own, under work whose answer is known; STANDBY=1: two heads; as root
chaos: setup
	@cd tests/chaos
	../../$(BIN)/python -m chaos --minutes $${MINUTES:-10} $${SEED:+--seed $$SEED} $${EACH:+--each $$EACH} $${KINDS:+--kinds "$$KINDS"} $${STANDBY:+--standby}

## make figures  the tables of docs/recovery.md: every fault RUNS (50) times, and the loss of one of three nodes; KINDS="a; b": only these; half an hour and more; as root
figures: setup
	@cd tests/chaos
	../../$(BIN)/python -m chaos.figures --runs $${RUNS:-50} $${KINDS:+--kinds "$$KINDS"}

## make kills    10,000 clients of the object store killed or stopped, 1,000 stores killed under them, 200 while they spill, 300 killed or stopped while they pull; every byte is accounted for
kills: setup
	@cd services/objectstore
	SHOAL_KILLS=$${SHOAL_KILLS:-10000} SHOAL_STORE_DEATHS=$${SHOAL_STORE_DEATHS:-1000} SHOAL_STORE_KILLS=$${SHOAL_STORE_KILLS:-200} SHOAL_CHAOS_S=$${SHOAL_CHAOS_S:-600} \
		SHOAL_PULL_DEATHS=$${SHOAL_PULL_DEATHS:-300} SHOAL_PULL_SEEDS=$${SHOAL_PULL_SEEDS:-1} \
		../../$(PYTEST) -s tests/test_kills.py tests/test_store_deaths.py tests/test_spilling.py tests/test_pull_deaths.py -k 'kill or stop or die'

## make bench    tasks, actors and objects by the second
bench: setup
	@$(BIN)/python benchmarks/core.py

## make foreign  packages for Ray that others wrote, from PyPI, under shoal.compat.ray
foreign: setup
	@$(BIN)/python scripts/foreign.py

## make wrk      replicas of Serve are killed under the load of wrk, which is installed where it is missing
wrk: setup
	@scripts/system.sh $(BIN)/python wrk
	$(PYTEST) libs/serve/tests/test_wrk.py -s

## make network  objects between two stores in two network namespaces, beside iperf3, which is installed where it is missing; as root
network: setup
	@scripts/system.sh $(BIN)/python iperf3
	$(BIN)/python services/objectstore/benchmarks/network.py

## make learn    every algorithm of rl on three seeds, to its goal on CartPole-v1 or Pendulum-v1; minutes, at most an hour
learn: setup
	@$(PYTEST) tests/learn --timeout 300

## make docs     the examples in docstrings
docs: setup
	@$(PYTEST) --doctest-modules libs/base/src/shoal_base

## make wheels   builds every wheel, installs them in a clean environment outside the repository, and runs the quickstart there
wheels: setup
	@$(BIN)/python scripts/check_wheels.py

## make check    what a change must pass: types and test
check: types test

## make clean    removes the environment and what was built
clean:
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache uv.lock
	find libs services \( -name build -o -name '*.egg-info' -o -name __pycache__ \) -type d -prune -exec rm -rf {} +
	find libs services \( -name '*.so' -o -name '*_pb2.py' -o -name '*_pb2.pyi' -o -name '*_pb2_grpc.py' \) -delete
