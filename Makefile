# `make demo` and `make test` are all a newcomer needs: each makes .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.PHONY: demo test slow check lint types doctest bench clean

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -e '.[test,bench]'
	touch $@

demo: $(VENV)/.demo          ## the main job on real data: four ways to train, one table
	$(BIN)/jaxptft demo --out runs/demo --overwrite

test: $(VENV)/.test          ## the tests, CPU only, in two processes
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

slow: $(VENV)/.test          ## runs killed at many moments, and other long ones
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright

doctest: $(VENV)/.test
	$(BIN)/python -m pytest -q --doctest-modules jaxptft

check: lint types test slow doctest

# Short runs of every script, some twenty minutes on two cores; without flags each measures longer.
BENCH := $(BIN)/python experiments/benchmarks
EAGER := '{"compile": "no", "attention": "sdpa", "optimizer": "fused", "multiple": 1}'

bench: $(VENV)/.test         ## side-by-side measurements against transformers + torch, and their table
	$(BENCH)/mlm_step.py --rounds 1 --steps 16 --p1 '{"compile": false, "large_pages": true}'
	$(BENCH)/finetune.py --rounds 1 --steps 8 --check-batches 6 --p1 $(EAGER)
	$(BENCH)/head_only.py --rounds 1 --sentences 192
	$(BENCH)/many_runs.py --rounds 1 --steps 20 --trials 2
	$(BENCH)/start_up.py --rounds 1
	$(BENCH)/memory.py --batches 8 16
	$(BENCH)/pipeline.py --rounds 1
	$(BENCH)/checkpoint_stall.py --rounds 1 --steps 20
	$(BENCH)/devices.py --rounds 1 --steps 2
	$(BENCH)/conversion_speed.py --rounds 1
	$(BENCH)/time_to_quality.py --rounds 1 --target 0.66
	$(BENCH)/table.py

clean:
	rm -rf $(VENV) build dist *.egg-info
