PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format slow clean

demo: .venv/examples.stamp  ## train a small ViT on real images, plain and aligned
	$(BIN)/python examples/train.py

test: .venv/test.stamp  ## run the default test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

slow: .venv/test.stamp  ## run the long sweeps
	$(BIN)/python -m pytest -m slow

lint: .venv/dev.stamp  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev.stamp  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/%.stamp: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:  ## remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
