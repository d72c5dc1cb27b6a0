# make demo, make test: on a fresh machine with Python 3.11 or newer; nothing needs to be done before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-servers test-ray check

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Consilience needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/consilience demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The client and the judges against transformers serve and llama.cpp, which is compiled first; LangChain against ours.
test-servers: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test-servers]'
	$(BIN)/python -m pytest -m servers

# Work shared out by Ray Data to processes of this machine.
test-ray: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
