# make install | demo | test | test-all | lint | bench
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests start their own Ray clusters; they must not depend on a token file of this user.
TEST_ENV := RAY_AUTH_MODE=disabled
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
# What starts no cluster and kills nothing runs side by side.
PURE := $(PYTEST) --numprocesses "$$(nproc)" --maxprocesses 8 --dist worksteal -m 'not slow and not ray'

.PHONY: install demo test test-all lint bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dali,pretrained,dev]'
	touch $@

demo: install
	$(BIN)/xdist-train demo --out demo-out

test: install
	$(PURE)
	$(PYTEST) -m 'ray and not slow'

test-all: install
	$(PURE)
	$(PYTEST) -m 'ray or slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
