# Mimu. `make run` starts a working server on a machine that has Python 3.11, make and a network; `make test` tests it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# uv, because its lock files are for every Python from 3.11 on; those of pip's tools are for one version.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url
# pytest compiles the tests itself, which takes ten seconds. It caches the result for the next process, also if the
# environment sets PYTHONDONTWRITEBYTECODE.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: help run doctor test test-thorough coverage check bench bench-peers lock clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 15

run: $(VENV)/.run ## Start a server with its own PostgreSQL and Valkey; data in ./var
	@exec $(BIN)/python server.py

doctor: $(VENV)/.run ## Examine the installation: ARGS="--url https://chat.example.org"
	@$(BIN)/python -m scripts.doctor $(ARGS)

# Six processes, also on two processors: most of the time the tests wait. Each runs a file at a time, in the order of
# tests/order.py: xdist would run the files with the fewest tests last, and those take longest.
SIX := --numprocesses 6 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev | tests/__pycache__ ## Run all the tests, with real services
	@sh tests/install_programs.sh
	$(PYTEST) $(SIX) $(ARGS)

# The same tests; those with random input run longer, and with another seed each time (tests/thorough.py).
test-thorough: export HYPOTHESIS_PROFILE = thorough
test-thorough: test ## Run them for longer: more random input, more repetitions of races

# Slower, because each line is counted, also in the servers and scripts that tests start. Some of these run as other users,
# who write into .coverage, too. Settings are in setup.cfg.
coverage: $(VENV)/.dev | tests/__pycache__ ## Run them and show the branches that no test runs
	@sh tests/install_programs.sh
	@rm -rf .coverage && mkdir -m 1777 .coverage
	-PYTHONDONTWRITEBYTECODE= $(BIN)/coverage run -m pytest $(SIX) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage html --quiet
	@$(BIN)/coverage report

# Compile once, before six processes do it at the same time.
tests/__pycache__: | $(VENV)/.dev
	@-$(PYTEST) --collect-only --quiet >/dev/null

check: $(VENV)/.dev ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## Measure the speed; docs/performance.md has results and method
	$(BIN)/python -m tests.bench $(ARGS)

bench-peers: $(VENV)/.dev ## Measure ejabberd and prosody (from apt) under the same load as ours
	$(BIN)/python -m tests.bench.peers $(ARGS)

lock: $(VENV)/.dev ## Renew the lock files from setup.cfg
	$(PIP) install 'uv>=0.9'
	$(LOCK) --upgrade --extra embedded --extra test --extra check -o requirements/dev.txt setup.cfg
# The others start as copies: uv keeps their versions and drops the packages that are not needed. So the tested versions
# are installed.
	cp requirements/dev.txt requirements/embedded.txt
	$(LOCK) --extra embedded -o requirements/embedded.txt setup.cfg
	cp requirements/dev.txt requirements/server.txt
	$(LOCK) -o requirements/server.txt setup.cfg

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Mimu needs Python 3.11 or newer; try make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/embedded.txt | $(VENV)/bin/python
	@echo "Installing what Mimu needs (once) ..."
	@$(PIP) install --require-hashes -r requirements/embedded.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/bin/python
	@echo "Installing what the tests need (once) ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@ $(VENV)/.run

clean: ## Remove what make installed; data in ./var stays
	rm -rf $(VENV)
