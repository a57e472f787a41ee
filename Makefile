# Everything a fresh machine needs: Python 3.11 or newer, make, and a package index.
PYTHON ?= python3
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet

.PHONY: setup demo test test-slow lint parity

setup: .venv/.ready

# torchvision, for the reference's processor, comes alone: it would pull a second torch. setuptools has a note about folders for every
# editable install whose folders are not named as its packages are; it does not apply to imports from here.
.venv/.ready: export PYTHONWARNINGS = ignore:Editable installation
.venv/.ready: pyproject.toml constraints.txt
	@echo 'Installing into .venv; this takes some minutes.'
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@$(PIP) -c constraints.txt -e '.[train,eval,plan,test,dev]'
	@$(PIP) -c constraints.txt --no-deps torchvision
	@touch .venv/.ready

# A trained model that hears and sees, then a random one with every part of the released model.
demo: setup
	@$(BIN)/qwen3-omni demo --out demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright

# The parity table of the README, from a run of the parity tests.
parity: setup
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/parity --parity-report docs/parity.json
	$(BIN)/python tools/parity_table.py --report docs/parity.json

test: lint
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

# The full checks that take long.
test-slow: setup
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -n 2 --dist loadfile -m slow
