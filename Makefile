# Two commands for a fresh clone: `make quickstart` and `make test`. Both can be run again.
# PYTHON chooses the interpreter (3.11 or newer): make quickstart PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := quickstart
SOURCES := pyproject.toml constraints.txt README.md LICENSE $(shell find medgen configs -type f -not -path '*/__pycache__/*')
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
export MPLBACKEND := Agg

.PHONY: quickstart test test-slow bench lint install install-test clean
.DELETE_ON_ERROR:

quickstart: install
	$(BIN)/medgen generate brain-t1 -n 2 -o $(OUT)/cohort --seed 1 --overwrite
	$(BIN)/medgen inpaint tests/data/open_ms/sub-07_T1w.nii.gz tests/data/open_ms/sub-07_hole.nii.gz \
		-o $(OUT)/filled_T1w.nii.gz --picture $(OUT)/filled.png --overwrite
	@echo
	@echo "Look at the pictures:"
	@echo "  $(CURDIR)/$(OUT)/cohort/contact_sheet.png   two synthetic heads, their label maps beside"
	@echo "  $(CURDIR)/$(OUT)/filled.png                 a real scan, a hole in it, what the model filled in"

test: install-test lint
	$(PYTEST) -n auto --dist loadfile -m "not slow and not gpu and not bench"

test-slow: install-test
	$(PIP) ".[test,bench,text]"
	$(PYTEST) -m "slow and not bench"

bench: install-test
	$(PIP) ".[test,bench]"
	$(PYTEST) -m bench -s

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy medgen

install: $(VENV)/installed
install-test: $(VENV)/installed-test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("medgen needs Python 3.11 or newer; " + sys.executable + " is " + v + ". Use: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SOURCES) | $(BIN)/python
	$(PIP) .
	@touch $@

$(VENV)/installed-test: $(SOURCES) | $(BIN)/python
	$(PIP) ".[test]"
	@touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
