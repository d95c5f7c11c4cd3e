# `make serve` serves the demo, `make test` runs all that guards a change, `make bench` compares with other servers. All
# set themselves up on first use, in .venv, and again only when pyproject.toml changes.
#
#   make serve ARGS="my_server.py --port 9000"
#   make test PYTHON=python3.13
#   make test ARGS="-k sessions -x"
#   make bench ARGS="--quick --only memory"

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help serve check test test-all test-times bench format clean
.SILENT:

help:
	echo 'make serve      serve the demo on http://127.0.0.1:8000/mcp (ARGS: options of mcp-hybrid serve)'
	echo 'make check      lint, types, all tests in process: for every save'
	echo 'make test       all that guards a change, on one Python (ARGS: options of pytest)'
	echo 'make test-all   all there is, on two Pythons: for a release'
	echo 'make test-times where the time of `make test` goes, written to docs/testing.md'
	echo 'make bench      compare with other servers (ARGS: options of benchmarks/compare.py)'
	echo 'make format     put the sources in shape'
	echo 'make clean      remove the virtual environments and caches'

serve: $(VENV)/.runtime
	exec $(BIN)/mcp-hybrid serve $(ARGS)

check: $(VENV)/.dev
	exec $(BIN)/python tools/run_tests.py check $(ARGS)

test: $(VENV)/.dev
	exec $(BIN)/python tools/run_tests.py test $(ARGS)

test-all: $(VENV)/.dev
	exec $(BIN)/python tools/run_tests.py all $(ARGS)

test-times: $(VENV)/.dev
	exec $(BIN)/python tools/test_times.py

bench: $(VENV)/.runtime
	exec $(BIN)/python benchmarks/compare.py $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-* .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

# pip is what venv puts in last, so a half-made environment is made again.
$(BIN)/pip:
	command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) was not found: install Python 3.11 or newer' >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is `$(PYTHON) -V 2>&1`, but Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo '$(PYTHON) has no venv: install it (Debian and Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
	echo 'setting up $(VENV)'
	$(PYTHON) -m venv $(VENV)

# The marks are files: what is installed is as new as they are.
$(VENV)/.runtime: pyproject.toml | $(BIN)/pip
	echo 'installing mcp-hybrid into $(VENV)'
	$(PIP) install -e .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	echo 'installing mcp-hybrid and its development tools into $(VENV)'
	$(PIP) install -e '.[dev]'
	touch $(VENV)/.runtime $@
