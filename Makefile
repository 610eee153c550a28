# Two commands matter: `make demo` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
# data for the tests and examples that need files; those are skipped where it names nothing
export POLYTASK_DATA ?= $(wildcard ../shared/data)
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint slow bench docs clean

demo: .venv/installed
	$(BIN)/polytask compare examples/digits.yaml --out runs/digits

test: .venv/dev lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs --doctest-modules src tests

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# what takes longer than half a minute, and the combinations of which `make test` runs a part
slow: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow -rA --durations=10 tests

# side-by-side timings; appends to benchmarks/RESULTS.md
bench: .venv/dev
	cd benchmarks && for file in loop phases balancing sparsity mixing sparse_text import_time gpu; do ../$(BIN)/python $$file.py || exit 1; done

# redraws the pictures of README.md and docs/ from runs/
docs: .venv/installed
	$(BIN)/python docs/pictures.py

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "polytask needs Python 3.11 or newer, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch .venv/installed

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/dev

clean:
	rm -rf .venv runs
