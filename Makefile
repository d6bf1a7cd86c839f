# Two commands matter: `make run` (everything from a fresh clone) and `make test` (what CI calls, and then `make
# evaluate`).
PYTHON ?= python3.11
VENV   := .venv
# extra arguments for pip, for instance another index for another build of torch
PIP_ARGS ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup run test slow lint evaluate bench page browser clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]' -c constraints.txt
	touch $(STAMP)

run: setup
	$(BIN)/algospace quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest --durations=25

# what takes minutes each: killed nodes and replicas, fuzzing, sweeps, trainings; an hour or more, not part of CI
slow: setup
	$(BIN)/python -m pytest -m slow -rs

# two minutes: stays out of a martingale, exploits an oracle, no leak alarm
evaluate: setup
	$(BIN)/algospace evaluate --config configs/evaluate/ci.yaml --out runs/evaluate-ci

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[bench]' -c constraints.txt
	$(BIN)/python -m benchmarks

# the trading page: Node.js and npm, versions as locked
page:
	cd serving/page/web && npm ci --ignore-scripts && npm run check && npm run build

# the page in headless Chromium; skips, visibly, where there is no Chromium (apt-get install chromium)
browser: setup page
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev,page]' -c constraints.txt
	$(BIN)/python -m pytest tests/integration/test_page_browser.py -rs

clean:
	rm -rf serving/page/static serving/page/web/node_modules
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
