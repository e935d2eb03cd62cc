# demo, test, check and bench set up their own .venv; nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-chaos check bench format lock clean

demo: $(VENV)/installed
	$(BIN)/patchcert demo

# Tests never run in the process that reports: one that ends its own is named there, and the run fails.
IN_TWO := -n 2 --max-worker-restart 0
IN_ONE := -n 1 --max-worker-restart 0

test: $(VENV)/installed
	$(BIN)/python -m pytest $(IN_TWO)

# All examples of the properties, end-to-end runs of every defense, suites, broken images, the tracker in a browser.
PROPERTIES := $(addprefix tests/,certificates geometry models views votes)
test-slow: $(VENV)/installed
	PATCHCERT_EXAMPLES=all $(BIN)/python -m pytest $(IN_TWO) -m "not slow and not ray" $(PROPERTIES)
	$(BIN)/python -m pytest $(IN_ONE) -m slow --timeout 900

# Kills actors, nodes, drivers and servers.
test-chaos: $(VENV)/installed
	PATCHCERT_CHAOS=1 $(BIN)/python -m pytest $(IN_ONE) tests/chaos -v --timeout 2400

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/certificates.py
	$(BIN)/python benchmarks/prediction.py
	$(BIN)/python benchmarks/variance.py
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/framework_cost.py
	$(BIN)/python benchmarks/vit_bands.py
	$(BIN)/python benchmarks/integrity_cost.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Versions and hashes of everything in the images, from PyPI; UPGRADE=--upgrade takes the newest instead of the locked.
# The demo and the tests do not install from it.
LOCK_TOOLS := build/lock-tools
LOCK := $(LOCK_TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --no-build \
	--generate-hashes --no-annotate --default-index https://pypi.org/simple --custom-compile-command "make lock" $(UPGRADE)

lock:
	$(PYTHON) -m venv $(LOCK_TOOLS)
	$(LOCK_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(LOCK) --extra jobs --output-file requirements.lock pyproject.toml
	sed -n 's/^\([a-z][^ ;]*==[^ ;]*\).*/\1/p' requirements.lock >$(LOCK_TOOLS)/versions.txt
	$(LOCK) --constraint $(LOCK_TOOLS)/versions.txt --output-file cluster/mlflow.lock cluster/mlflow.in

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "patchcert needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "Installing into $(VENV) (a few minutes and 6 GB the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) patchcert-work
