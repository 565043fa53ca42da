# make demo      set everything up and run the main job
# make deploy-demo  a whole federation on this machine, as institutions would run it; minutes
# make test      set everything up and pass the tests
# make test-all  the slow ones too: real Flower processes, MiniLM, recipes at full length
# make results   the measured comparisons: docs/results.md and the headers of simulations/; hours on 2 cores
# make soak      500 rounds in one process: memory, descriptors, threads and disk stay flat
# make lint      formatting, lint and types

PYTHON ?= python3
BIN := .venv/bin
# Two OpenMP threads on a busy machine spin instead of waiting.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 0
export TOKENIZERS_PARALLELISM := false
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: demo deploy-demo test test-all results soak lint format clean

demo: .venv/.installed
	$(BIN)/fedmerge simulate

deploy-demo: .venv/.installed
	$(BIN)/python scripts/deploy_demo.py

test: .venv/.installed-test lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: .venv/.installed-test lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow"
	$(BIN)/python -m pytest -q -m slow

results: .venv/.installed-test
	$(BIN)/python docs/results.py

soak: .venv/.installed-test
	$(BIN)/python benchmarks/soak.py

lint: .venv/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.installed-test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# The extras of the tests are a second step, so that the demo installs no more than it needs.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf .venv runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
