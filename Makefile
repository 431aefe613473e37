# The one door. `make run` shows the main job, `make test` is what holds the product together, `make check` is all that CI asks.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
PACKAGES := libs/base services/objectstore services/gcs services/raylet libs/core
# What an editable install does not see change by itself: metadata, contracts, everything compiled.
BUILT_FROM := constraints.txt $(foreach p,$(PACKAGES),$(wildcard $(p)/pyproject.toml $(p)/setup.py)) \
	$(shell find $(PACKAGES) \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.proto' \) -not -path '*/build/*' 2>/dev/null)
TOOLS := pytest pytest-timeout hypothesis ruff mypy import-linter numpy pandas pyarrow redis psutil uvloop
PYTEST := $(BIN)/python -m pytest

.PHONY: setup system run test quick lint types unit e2e sim wheels check bench docs soak clean

setup: $(VENV)/.installed

# uv does not read pip's configuration: what pip was told about packages and certificates is passed on.
$(VENV)/.installed: $(BUILT_FROM)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@PATH="$(BIN):$$PATH" scripts/install.sh $(addprefix -e ,$(PACKAGES)) -c constraints.txt $(TOOLS)
	@touch $@

system:
	@scripts/system.sh

run: setup
	$(BIN)/python examples/quickstart.py

test: setup system lint unit e2e wheels

quick: setup lint
	$(PYTEST) libs -x

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: setup
	$(BIN)/mypy --no-incremental libs/base/src/shoal_base services/gcs/src/shoal_gcs services/raylet/src/shoal_raylet

unit: setup system
	$(PYTEST) libs services
	$(BIN)/python -m doctest libs/base/src/shoal_base/resources.py

e2e: setup
	$(PYTEST) tests

sim: setup
	SHOAL_SIM_SEEDS=10000 $(PYTEST) tests/sim --timeout 3600

soak: setup
	SHOAL_SOAK_CYCLES=100 SHOAL_SOAK_KILLS=20 $(PYTEST) tests/cluster/test_lifecycle.py --timeout 1200

wheels: setup
	$(BIN)/python scripts/check_wheels.py

bench: setup
	$(BIN)/python benchmarks/core.py

docs: setup
	$(PYTEST) --doctest-modules libs/base/src/shoal_base -p no:cacheprovider

check: test types

clean:
	rm -rf $(VENV) build dist
