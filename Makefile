# `make serve` serves the demo, `make test` runs everything that must pass, `make bench` compares with other servers. All
# set themselves up on first use, in .venv, and again only when pyproject.toml changes.
#
#   make serve ARGS="my_server.py --port 9000"
#   make test PYTHON=python3.13
#   make bench ARGS="--quick --only memory"

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help serve test bench check format clean
.SILENT:

help:
	echo 'make serve   serve the demo on http://127.0.0.1:8000/mcp (ARGS: options of mcp-hybrid serve)'
	echo 'make test    check, run the tests on two Pythons, try the wheel'
	echo 'make bench   compare with other servers (ARGS: options of benchmarks/compare.py)'
	echo 'make check   ruff and mypy'
	echo 'make format  put the sources in shape'
	echo 'make clean   remove the virtual environments and caches'

serve: $(VENV)/.runtime
	exec $(BIN)/mcp-hybrid serve $(ARGS)

test: check
	$(BIN)/python -m pytest -q
	$(BIN)/python tools/newest_python.py
	$(BIN)/python tools/check_wheel.py

bench: $(VENV)/.runtime
	exec $(BIN)/python benchmarks/compare.py $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src tests tools $(wildcard benchmarks/*.py)

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
