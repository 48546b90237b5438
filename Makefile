# make demo, make test, make check: each sets up what it needs in .venv on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin

BENCH ?= --json docs/performance.json --doc docs/performance.md

.PHONY: help demo test check docs picture torture bench package lock clean
help:
	@echo "make demo   install into .venv and run the main job on the embedded digits"
	@echo "make test   install into .venv and run all tests"
	@echo "make check  lint, format, types, import contracts"
	@echo "make docs   install into .venv and build the documentation's site in build/site"
	@echo "make picture  train by the recipe digits, and draw the README's picture from it"
	@echo "make torture  attack run folders, files and inputs (MINUTES=2 SEED=0; MINUTES=60: in full)"
	@echo "make bench  time the engine against its peers, in .venv-bench (hours; BENCH=--quick: minutes)"
	@echo "make package  build wheel and sdist, and try each in fresh environments (PYTHONS=python3.12)"
	@echo "make lock   write the versions in .venv to requirements.lock"
	@echo "make clean  remove environments and caches; runs/ stays"

demo: .venv/ready
	$(BIN)/conescope run digits

test: .venv/ready-dev
	$(BIN)/pytest -n auto --dist worksteal

check: .venv/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

MINUTES ?= 2
SEED ?= 0
BATTERIES ?=
TORTURE ?=
export CASE
torture: .venv/ready-dev
	PYTHONPATH=. $(BIN)/python -m benchmarks.torture $(BATTERIES) --minutes $(MINUTES) \
		--seed $(SEED) $${CASE:+--case "$$CASE"} $(TORTURE)

picture: .venv/ready-dev
	PYTHONPATH=. $(BIN)/python -m benchmarks.picture

PICTURE := docs/figures/digits.png
$(PICTURE): src/conescope/training/recipes/digits.yaml
	$(MAKE) picture

docs: .venv/ready-docs $(PICTURE)
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" CONESCOPE_EXAMPLES="$(CURDIR)/examples" \
		$(BIN)/sphinx-build -W --keep-going -q -j 2 -b html docs build/site
	@echo "the site: build/site/index.html"

bench: .venv-bench/ready
	.venv-bench/bin/python -m benchmarks $(BENCH)

PYTHONS ?= python3.11 python3.12 python3.13
package: .venv/ready-dev
	$(BIN)/python -m benchmarks.packages $(PYTHONS)

lock: .venv/ready-dev
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf .venv .venv-bench build .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "conescope needs Python 3.11 or newer; name one: make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; rm -rf .venv; exit 1; }

.venv/ready: $(BIN)/pip pyproject.toml requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

.venv/ready-docs: .venv/ready-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[docs]'
	@touch $@

.venv-bench/ready: benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -c benchmarks/requirements.txt -e .
	for peer in $$(grep -v '^#' benchmarks/requirements.txt); do \
		.venv-bench/bin/pip install --quiet --disable-pip-version-check \
			-c benchmarks/requirements.txt $$peer \
		|| echo "bench: $$peer cannot be installed here; it is left out"; done
	@touch $@
