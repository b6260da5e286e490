# Everything a fresh clone needs: python3 >= 3.11 with venv and pip, and make.
#
#   make check        format, lint, types, import rules, and every quick test that needs no node
#                     environment and no hosts
#   make test         all of that, plus the tests against real vLLM, Ray and SSH to hosts made of
#                     namespaces; everything but the GPU tier
#   make demo         a local cluster of two vLLM instances, shown at work
#   make bench        the standard set on four real engines that are short of KV, and its tables in
#                     docs/benchmarks.md anew; hours, by itself on the machine. make bench SET=drain: one
#   make chaos        every kind of fault, over a hundred of them, on three namespace hosts with real
#                     vLLM; at most an hour; goes on where it was interrupted; needs root
#   make rollout      an engine argument, then another model, rolled out under load over three instances of
#                     real vLLM; some five minutes
#   make fuzz         what is asked of inputs and sockets from outside, thirty times as often
#   make audit        ask osv.dev about known vulnerabilities of all packages that llx installs
#   make wheelhouse   all packages of the node environment, as hosts without internet get them
#   make dist         wheel and sdist into dist/, checked; the same commit gives the same bytes
#   make man          the manual pages anew, from the command's own help
#   make locks        the hashed locks anew, after a change of pins or dependencies; what still fits
#                     stays. make locks AS_OF=2026-11-28: the newest of everything at that moment
#   make licences     docs/licences.md anew: under what terms each package is that llx installs
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
# Processes that run tests side by side, on two cores. Most tests of `make test` wait most of the time.
JOBS ?= 3
CHECK_JOBS ?= 2
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

.PHONY: check test lint node wheelhouse host-tools demo bench chaos rollout fuzz audit dist man locks licences clean

# What lies below these is deselected as a whole: each process of pytest need not import it first.
BEYOND_CHECK := $(addprefix --ignore=tests/,e2e gpu hosts migration)

check: lint
	@env -u LLX_NODE_PREFIX $(BIN)/pytest -q -n $(CHECK_JOBS) $(BEYOND_CHECK) --hypothesis-profile=quick -m 'not node and not gpu and not hosts and not slow' $(PYTEST_ARGS)

# What it needs is made side by side. One pytest run, last: its summary is the last thing printed.
test: $(VENV)/.stamp
	@$(MAKE) -j4 lint host-tools node wheelhouse
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
	@$(BIN)/python -m tests.bench.live_policies --page docs/benchmarks.md --out build/bench-$$(date +%Y%m%d-%H%M%S) $(SET)

chaos: host-tools node wheelhouse
	@$(BIN)/python -m tests.chaos.on_hosts --out build/chaos

rollout: node
	@$(BIN)/pytest -q -s tests/e2e/rollout_of_three.py $(PYTEST_ARGS)

fuzz: node
	@$(BIN)/pytest -q -n $(JOBS) --hypothesis-profile=fuzz tests/fuzz tests/test_wire.py tests/agent/transport/test_frames.py tests/e2e/test_secured_gateway.py $(PYTEST_ARGS)

audit: $(VENV)/.stamp
	@$(BIN)/python .ci/audit.py

dist: $(VENV)/.stamp
	@$(BIN)/python .ci/dist.py

man: $(VENV)/.stamp
	@$(BIN)/python .ci/manual.py

locks: $(VENV)/.stamp
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[locks]' >&2
	@$(BIN)/python -m llx.bootstrap.locks.refresh $(if $(AS_OF),--as-of $(AS_OF)) >&2

licences: $(VENV)/.stamp
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[locks]' >&2
	@$(BIN)/python .ci/licences.py >&2

clean:
	@rm -rf $(VENV) $(NODE) $(CURDIR)/.wheelhouse dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find llx tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp: pyproject.toml llx/__init__.py
	@echo 'making .venv' >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"llx needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}: make PYTHON=/path/to/python3")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]' >&2
	@touch $@
