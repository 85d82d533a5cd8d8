# `make demo` and `make test` are all a newcomer needs: each makes .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Large pages and no returning of memory between steps: about a sixth less CPU time a step under glibc.
LARGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=2147483648:glibc.malloc.trim_threshold=4294967296

.PHONY: demo test check lint types doctest bench clean

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[test,bench]'
	touch $@

demo: $(VENV)/.demo          ## the main job on real data: four ways to train, one table
	$(LARGE_PAGES) $(BIN)/jaxptft demo --out runs/demo --overwrite

test: $(VENV)/.test          ## every test, CPU only, in two processes
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright

doctest: $(VENV)/.test
	$(BIN)/python -m pytest -q --doctest-modules jaxptft

check: lint types test doctest

bench: $(VENV)/.test         ## side-by-side measurements against transformers + torch
	$(BIN)/python experiments/benchmarks/finetune.py

clean:
	rm -rf $(VENV) build dist *.egg-info
