# Every target makes the virtual environment it needs, from the locked requirements, and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UV_VERSION := 0.13.9
LOCK := build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-annotate --custom-compile-command "make lock" pyproject.toml

# Most tests wait for a server now and then: three at once, each with servers of its own, keep two processors busy.
WORKERS := 3
# They start some hundred processes, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint format bench oracle fuzz lock clean

help: ## Show the targets.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install: $(VENV)/.dev ## Make .venv with the integrity command and all that tests need.

demo: $(VENV)/.demo ## Run the demo: a small shop on embedded servers.
	@$(BIN)/integrity demo $(ARGS)

test: $(VENV)/.dev ## Run every test: unit, property, contract, integration, acceptance.
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint ## What lint does, and the fast tests.
	@$(BIN)/python -m pytest -q $(wildcard tests/unit tests/property tests/golden)

lint: $(VENV)/.dev ## Format check, lint, types and layers.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## Format the code and fix what the linter can.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Run the benchmarks.
	@$(BIN)/python -m tests.bench $(ARGS)

oracle: $(VENV)/.dev ## Compare random histories with native foreign keys, on real servers.
	@$(BIN)/python -m tests.oracle $(ARGS)

fuzz: $(VENV)/.dev ## Decode random bytes and mutilated records, many of them.
	@$(BIN)/python -m tests.fuzz $(ARGS)

lock: build/uv/.installed ## Resolve the requirements again and write the locked files.
	@$(LOCK) --upgrade --extra dev --group build --output-file requirements-dev.txt
	@$(LOCK) --constraints requirements-dev.txt --extra demo --group build --output-file requirements-demo.txt
	@$(LOCK) --constraints requirements-dev.txt --output-file requirements.txt

clean: ## Remove what the other targets made.
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The build backend comes from the locked set too, hence no build isolation: nothing unlocked is ever installed.
$(VENV)/.dev: requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing the locked requirements into $(VENV) (a minute at first)"
	@$(PIP) install --require-hashes --requirement requirements-dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.demo

$(VENV)/.demo: requirements-demo.txt pyproject.toml | $(BIN)/python
	@echo "Installing the locked requirements into $(VENV) (a minute at first)"
	@$(PIP) install --require-hashes --requirement requirements-demo.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "integrity needs Python 3.11 or newer; name one with 'make PYTHON=python3.12'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update >/dev/null \
			&& DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null; } \
		|| { echo "Python's venv module is missing: install the package python3-venv." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

build/uv/.installed: Makefile | $(BIN)/python
	@$(BIN)/python -m venv build/uv
	@build/uv/bin/python -m pip --disable-pip-version-check --quiet install uv==$(UV_VERSION)
	@touch $@
