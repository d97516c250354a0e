PYTHON ?= python3
BIN := .venv/bin

# one thread for each process; a whole file to each process, since the tests of a file share what is slow to prepare
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
FAST := tests/capture tests/graph tests/propagate tests/rewrite tests/runtime tests/test_layers.py \
	tests/test_operations.py tests/rules/test_attention.py tests/rules/test_contraction.py

.PHONY: demo test test-fast lint format slow docs clean

demo: .venv/examples.stamp  ## train a small ViT on real images, plain and aligned
	$(BIN)/python examples/train.py

test: .venv/test.stamp  ## run the default test suite
	$(PYTEST) $(PARALLEL)

test-fast: .venv/test.stamp  ## test the engine alone: from capture to the aligned graph
	$(PYTEST) $(PARALLEL) $(FAST)

slow: .venv/test.stamp  ## run what takes long: full sizes, several processes, cases like others, many examples
	$(BIN)/python -m pytest -m slow
	$(PYTEST) $(PARALLEL) --hypothesis-profile=many tests/rules

docs: .venv/docs.stamp  ## build the documentation site in site/
	$(BIN)/mkdocs build

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
	rm -rf .venv site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
