# Everything a newcomer types. `make` alone lists it.
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
RECORDS ?= 200000
SCALE   ?= 1
BIN     := .venv/bin
CRATE   := pipeline/native/Cargo.toml
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help demo up down status test lint bench bench-agents bench-gateway bench-peers bench-writers wheels drills \
        clean prerequisites

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 16

demo: .venv/stamp  ## the main job on real input (RECORDS=200000), then the proof
	@$(BIN)/python deploy/demo/demo.py --records $(RECORDS)

up: .venv/stamp  ## start the stack for hands-on work, or what of it does not run (REGIONS=eu,us,central: several)
	@$(BIN)/pipeline local up $(if $(REGIONS),--regions $(REGIONS))

down: .venv/stamp  ## stop the stack
	@$(BIN)/pipeline local down

status: .venv/stamp  ## every address and process of the stack
	@$(BIN)/pipeline local status

test: .venv/stamp  ## all tests, on the real parts
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: .venv/stamp  ## style, types, layers, licences
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@if command -v cargo >/dev/null; then \
	    cargo fmt --check --manifest-path $(CRATE) \
	    && PYO3_PYTHON="$$PWD/$(BIN)/python" cargo clippy --quiet --locked --manifest-path $(CRATE) -- --deny warnings \
	    && $(BIN)/python -m tests.native.licences; \
	else echo "cargo is missing: nobody looked at pipeline/native." >&2; test -z "$$CI"; fi

bench: .venv/stamp  ## records/s, CPU, p50/p99, RSS, against the numbers of the design
	@$(BIN)/python -m tests.bench

bench-gateway: .venv/stamp  ## the gateway alone, closed and open loops; fails where a floor is missed
	@$(BIN)/python -m tests.bench gateway

bench-peers: .venv/stamp  ## the gateway beside an OpenTelemetry Collector, which it builds (needs Go); fails under 2.0
	@$(BIN)/python -m tests.bench peers

bench-writers: .venv/stamp  ## catch-up of both writers from a filled topic (SCALE=1); fails where a floor is missed
	@$(BIN)/python -m tests.bench writers --scale $(SCALE)

wheels: .venv/stamp  ## a wheel for every Python from 3.11 on, in dist/
	@command -v cargo >/dev/null || { echo "Rust is missing and wheels hold the extension: install it by rustup." >&2; exit 1; }
	@rm -rf build dist
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheels .
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheels/*.whl

bench-agents: .venv/stamp  ## an agent's process alone, records/s by its form; fails where a floor is missed
	@$(BIN)/python -m tests.bench agents

drills: .venv/stamp  ## long drills, fuzz and soak, an hour or more; `python -m tests.drills --help` has short forms
	@$(BIN)/python -m tests.drills

clean: down  ## remove all data and what was fetched; .venv stays
	@$(BIN)/pipeline local down --wipe
	@rm -rf .local

# One sentence for each thing that is missing, all at once.
prerequisites:
	@missing=0; \
	say() { echo "$$1" >&2; missing=1; }; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || say "Python 3.11 or later is missing: install it, or name it with make PYTHON=/path/to/python3.11."; \
	command -v java >/dev/null || say "Java is missing and Kafka needs it: install Java 17 or later."; \
	command -v mvn >/dev/null || say "Maven is missing and fetches Kafka and PostgreSQL: install it, with mvn on the PATH."; \
	command -v node >/dev/null && command -v npm >/dev/null \
	    || say "Node.js is missing and serves TimescaleDB for tests: install Node.js 18 or later, with npm."; \
	exit $$missing

.venv/stamp: pyproject.toml $(wildcard pipeline/native/Cargo.* pipeline/native/src/*.rs) | prerequisites
	@echo "python: installing pinned packages into .venv" >&2
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/pipeline --version >&2
	@touch $@
