# Everything a fresh clone needs: python3 >= 3.11 with venv and pip, and make.
#
#   make check        format, lint, types, import rules, and every test that needs no node
#                     environment and no hosts
#   make test         all of that, plus the tests against real vLLM, Ray and SSH to hosts made of
#                     namespaces; everything but the GPU tier
#   make demo         a local cluster of two vLLM instances, shown at work
#   make bench        what moves and priorities bring on four real engines that are short of KV; half
#                     an hour, by itself on the machine
#   make fuzz         what `make check` asks of inputs and sockets from outside, thirty times as often
#   make wheelhouse   all packages of the node environment, as hosts without internet get them
#   make locks        refresh the hashed locks of the node environment
#   make clean        remove both environments, the packages and the caches
#
# .venv is the operator's and developer's environment, .node the one vLLM and Ray run in (made by
# llx's own installer). Progress goes to stderr: stdout belongs to pytest and to the demo. As root,
# `make test` installs what its hosts need (.ci/host-tools); without root that tier is skipped.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := check
.SUFFIXES:

PYTHON ?= python3
PYTEST_ARGS ?=
# Tests that run side by side. Most of them wait most of the time, vLLM's do not.
JOBS ?= 2
# cpu or cuda. The tests run vLLM on the CPU, also where there is a GPU.
NODE_PLATFORM ?= cpu
# A folder of wheels (`llx node download`), for a machine without internet.
NODE_WHEELHOUSE ?=

VENV := $(CURDIR)/.venv
NODE := $(CURDIR)/.node
WHEELHOUSE := $(or $(NODE_WHEELHOUSE),$(CURDIR)/.wheelhouse)
BIN := $(VENV)/bin

export LLX_NODE_PREFIX := $(NODE)
export LLX_WHEELHOUSE := $(WHEELHOUSE)

.PHONY: check test lint node wheelhouse host-tools demo bench fuzz locks clean

check: lint
	@env -u LLX_NODE_PREFIX $(BIN)/pytest -q -n $(JOBS) -m 'not node and not gpu and not hosts and not slow' $(PYTEST_ARGS)

# One pytest run, last: its summary is the last thing printed.
test: lint host-tools node wheelhouse
	@$(BIN)/pytest -q -n $(JOBS) -m 'not gpu' $(PYTEST_ARGS)

lint: $(VENV)/.stamp
	@$(BIN)/ruff format --quiet --check --diff . >&2 || { echo 'remedy: .venv/bin/ruff format .' >&2; exit 1; }
	@$(BIN)/ruff check --quiet . >&2
	@$(BIN)/mypy --no-error-summary >&2
	@$(BIN)/lint-imports --cache-dir .import_linter_cache > $(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log >&2; exit 1; }

node: $(VENV)/.stamp
	@$(BIN)/python -m llx.bootstrap.node_env install --prefix $(NODE) \
	  --platform $(NODE_PLATFORM) \
	  $(if $(NODE_WHEELHOUSE),--wheelhouse $(NODE_WHEELHOUSE)) >&2

wheelhouse: $(VENV)/.stamp
ifeq ($(NODE_WHEELHOUSE),)
	@$(BIN)/llx node download $(WHEELHOUSE) --platform $(NODE_PLATFORM) >/dev/null
endif

host-tools:
	@.ci/host-tools >&2

demo: node
	@$(BIN)/llx demo --platform $(NODE_PLATFORM)

bench: node
	@$(BIN)/python -m tests.bench.live_policies --out build/bench-$$(date +%Y%m%d-%H%M%S)

fuzz: $(VENV)/.stamp
	@$(BIN)/pytest -q -n $(JOBS) --hypothesis-profile=fuzz tests/fuzz tests/test_wire.py tests/agent/transport/test_frames.py $(PYTEST_ARGS)

locks: $(VENV)/.stamp
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[locks]' >&2
	@$(BIN)/python -m llx.bootstrap.locks.refresh >&2

clean:
	@rm -rf $(VENV) $(NODE) $(CURDIR)/.wheelhouse dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find llx tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp: pyproject.toml llx/__init__.py
	@echo 'making .venv' >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"llx needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}: make PYTHON=/path/to/python3")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]' >&2
	@touch $@
