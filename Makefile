# Everything runs in .venv, which is made with `python3` (3.10 to 3.13): PYTHON=python3.12 make test
PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
# The tests that ask for nothing but the installed package, and the examples.
WHEEL_TESTS ?= --pyargs lightning_bsscale tests/callbacks tests/cli tests/critical_batch tests/gradients tests/report tests/theory \
	tests/verdict tests/test_examples.py tests/test_functional.py tests/test_journal.py tests/test_metric.py tests/test_surface.py
OLDEST_PYTHON ?= python3.10

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-nightly test-oldest test-wheel dist bench lint format docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    set up and run the demonstration (about a minute on a CPU after installation)"
	@echo "make test    set up and run the tests (WORKERS=$(WORKERS), PYTEST_ARGS='-k name')"
	@echo "make test-nightly  the same with 50 kills, 500 random programs and the long trainings"
	@echo "make test-oldest  the tests with the oldest declared versions of all dependencies (OLDEST_PYTHON=$(OLDEST_PYTHON))"
	@echo "make test-wheel   build sdist and wheel, and test the installed wheel from outside of this folder"
	@echo "make dist    build sdist and wheel into dist/, and check their metadata"
	@echo "make bench   run all benchmarks and draw all pictures again (hours; resumes; BENCH_ARGS='--list' or '--pictures')"
	@echo "make lint    ruff (check and format), mypy --strict, codespell, schemas of CITATION.cff and of the forms for issues"
	@echo "make format  let ruff fix what it can"
	@echo "make docs    build docs/ into docs/_build/html, warnings are errors"
	@echo "make clean   remove .venv, .venv-oldest, caches and build outputs (runs/ stays)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info[:2] <= (3, 13) else "Python 3.10 to 3.13 is needed, found " + sys.version.split()[0] + ": set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: a second `make test` installs nothing, and `make test` after `make demo` only adds what is missing.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable ".[$*]"
	@touch $@

demo: $(VENV)/.installed-examples
	$(BIN)/python -m lightning_bsscale demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

test-nightly: PYTEST_ARGS += --nightly --timeout 1800
test-nightly: test

# An editable install without dependencies comes first: its metadata say which versions are the oldest. Old versions warn of
# what newer ones of other packages no longer like, so these warnings are no errors here.
test-oldest:
	$(OLDEST_PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	.venv-oldest/bin/python tests/helpers/oldest_versions.py dev docs > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-oldest/constraints.txt --editable ".[test]"
	.venv-oldest/bin/python -m pytest -n $(WORKERS) -W ignore::DeprecationWarning -W ignore::FutureWarning $(PYTEST_ARGS)

dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The tests come from the sdist, and the package from the wheel alone: its sources are removed.
test-wheel: dist
	set -e; outside=$$(mktemp -d); trap 'rm -rf "$$outside"' EXIT; \
	$(PYTHON) -m venv "$$outside/.venv"; \
	"$$outside/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		"$$(echo "$$PWD"/dist/*.whl)[test]"; \
	tar -xzf dist/*.tar.gz -C "$$outside" --strip-components 1; \
	rm -r "$$outside/lightning_bsscale"; \
	cd "$$outside"; \
	.venv/bin/python -m pytest -n $(WORKERS) $(PYTEST_ARGS) $(WHEEL_TESTS)

bench: $(VENV)/.installed-examples
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build/html

clean:
	rm -rf $(VENV) .venv-oldest build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis lightning_logs htmlcov .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
