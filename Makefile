PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
BIN := .venv/bin
OLDEST := .venv-oldest/bin

# one thread for each process; no cache of torch's fake tensors, which costs more than it saves where each model is small
# and captured once; a whole file to each process, since the tests of a file share what is slow to prepare
PYTEST := OMP_NUM_THREADS=1 TORCH_FAKE_TENSOR_DISPATCH_CACHE=0 $(BIN)/python -m pytest
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
FAST := tests/capture tests/graph tests/propagate tests/rewrite tests/runtime tests/test_layers.py \
	tests/test_operations.py tests/rules/test_attention.py tests/rules/test_contraction.py

# what torch 2.6 lacks; CONTRIBUTING.md says which forwards are refused there
NOT_OLDEST := --ignore tests/capture/test_kernels.py \
	--deselect 'tests/capture/test_capture.py::test_parametrised_modules[spectral_norm]' \
	--deselect 'tests/capture/test_left_behind.py::test_a_generator_of_torch_is_the_models[False]' \
	--deselect tests/runtime/test_attention_kernel.py::test_export_and_fake_tensors_know_the_operator

.PHONY: demo test test-fast test-oldest lint format slow docs clean

demo: .venv/examples.stamp  ## train a small ViT on real images, plain and aligned
	$(BIN)/python examples/train.py

test: .venv/test.stamp  ## run the default test suite
	$(PYTEST) $(PARALLEL)

test-fast: .venv/test.stamp  ## test the engine alone: from capture to the aligned graph
	$(PYTEST) $(PARALLEL) $(FAST)

test-oldest: .venv-oldest/stamp  ## test the engine with the oldest Python and libraries that are supported
	OMP_NUM_THREADS=1 $(OLDEST)/python -m pytest $(PARALLEL) $(FAST) $(NOT_OLDEST)

slow: .venv/test.stamp  ## run what takes long: full sizes, several processes, cases like others, many examples
	$(PYTEST) $(PARALLEL) -m slow
	$(PYTEST) $(PARALLEL) --hypothesis-profile=many tests/rules

docs: .venv/docs.stamp  ## build the documentation site in site/
	$(BIN)/mkdocs build

lint: .venv/dev.stamp  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev.stamp  ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv-oldest/stamp: pyproject.toml tests/oldest.txt
	test -d .venv-oldest || $(OLDEST_PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet --constraint tests/oldest.txt --editable . \
		hypothesis pytest pytest-xdist timm torchvision
	touch $@

.venv/%.stamp: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:  ## remove the environment and caches
	rm -rf .venv .venv-oldest site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
