# Everything a fresh machine needs: Python 3.11 or newer, make, and a package index.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: setup demo test test-slow lint parity

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,eval,plan,test,dev]'
	# The reference's processor needs torchvision; without --no-deps it would pull a second torch.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps torchvision
	touch .venv/.ready

# The main job on the embedded default: a tiny random checkpoint, sample media, one conversation for each.
demo: setup
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/qwen3-omni demo --out demo

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
