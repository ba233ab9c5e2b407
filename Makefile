# make demo : set up and run the main job on the embedded simulated world
# make test : set up and run the whole suite
# Both need only Python 3.11 or newer and may be run again at any time.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test check clean

venv: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'smgrid needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: venv
	$(BIN)/smgrid demo

test: venv
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv demo
