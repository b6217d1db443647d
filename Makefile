# Two commands do everything: `make reproduce` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= out

# Also for what builds the package itself.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A third of the installation was compiling all modules of all packages; here each is compiled at its
# first import, and kept even where the environment says not to.
INSTALL := -m pip install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE :=

.PHONY: reproduce test lint types tests clean

reproduce: .venv/installed
	$(BIN)/batchlab reproduce --out $(OUT)

test: lint types tests

lint: .venv/dev-installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: .venv/dev-installed
	$(BIN)/mypy

tests: .venv/dev-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not hours" -n 2 --no-loadscope-reorder

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -e .
	touch $@

.venv/dev-installed: .venv/installed
	$(BIN)/python $(INSTALL) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv $(OUT)
