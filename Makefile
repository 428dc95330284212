# Each target sets up what it needs in .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check setup docs harnesses trust

setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,java]'
	touch $@

# The main job on real weights: about 7 minutes on two cores. QUICK=1: the same path in a few steps.
demo: setup
	$(BIN)/python tools/demo.py $(if $(QUICK),--quick)

# The tests use the default frozen parts too, and fetch them by the project's own command.
test: setup
	$(BIN)/excitor-mm fetch-defaults
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

# The documentation, into site/.
docs: setup
	$(BIN)/mkdocs build --strict

# Evaluation harnesses bring hundreds of packages, so each gets an environment of its own.
harnesses:
	for extra in lm-eval lmms-eval vlmevalkit; do \
	  $(PYTHON) -m venv .venv-$$extra && \
	  .venv-$$extra/bin/python -m pip install --quiet --editable ".[dev,java,$$extra]" && \
	  .venv-$$extra/bin/python -m pytest tests/harnesses || exit 1; \
	done

# The long forms of tests/trust: kills, ranks, a million samples, twenty thousand hostile files; about 10 minutes on two cores.
trust: setup
	$(BIN)/python -m tests.trust.kill --kills 50
	$(BIN)/python -m tests.trust.ranks
	$(BIN)/python -m tests.trust.stream --samples 1000000
	$(BIN)/python -m tests.trust.fuzz --inputs 20000
