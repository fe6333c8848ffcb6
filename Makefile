# Everything runs in .venv, which is made at first use and again when
# pyproject.toml changes. To make it from another interpreter: make PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NEWEST ?= python3.13
# What a change of Python, Dask, Zarr or scikit-learn would break first.
CORE := $(addprefix tests/,em/test_em.py estimators/test_dask.py storage/test_store.py \
	data/test_sources.py data/test_parquet.py data/test_reading.py)
OF_CORE := pytest pytest-timeout pytest-xdist hypothesis
# Tests run in as many processes as there are processors; -n0 runs them in one.
IN_PARALLEL := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-cluster
.PHONY: setup-lowest setup-newest test-expressions test-lowest test-newest test-wheel
.PHONY: lint format docs bench clean

help:
	@echo "make demo          fit a data set larger than its memory, and draw the result"
	@echo "make test          the tests, less the slow ones and those that need services"
	@echo "make test-slow     the slow tests"
	@echo "make test-cluster  the tests that need SLURM, sshd and the like"
	@echo "make test-expressions  the core tests where Dask's arrays are expressions"
	@echo "make test-lowest   the core tests on the lowest versions that are allowed"
	@echo "make test-newest   the core tests on another Python: NEWEST=python3.13"
	@echo "make test-wheel    what is published: built, installed, and its demo run"
	@echo "make lint          ruff and mypy"
	@echo "make format        let ruff lay out the code"
	@echo "make docs          the documentation: docs/_build/html/index.html"
	@echo "make bench         measure speed and memory"
	@echo "make clean         remove all that these commands made, .venv included"

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/daskgmm demo

test: $(READY)
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow and not cluster"

# Tests in which workers die have limits of time, and the processors to themselves.
test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not cluster" tests/execution/test_cluster.py
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "slow and not cluster" \
		--ignore tests/execution/test_cluster.py

# The wheel holds the schemas that the manifests for Kubernetes are checked against.
# Azurite is an emulator of Azure's storage.
# With apt: slurm-wlm munge openssh-server iproute2 openssl systemd nodejs npm
test-cluster: $(READY)
	$(BIN)/python -m pip download --quiet --no-deps --dest .venv/wheels \
		'dask-kubernetes>=2025.1'
	npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@3
	$(BIN)/python -m pytest -m cluster

# Dask's expressions cannot do yet what the other tests ask of them.
test-expressions: $(READY)
	DASK_ARRAY__QUERY_PLANNING=true $(BIN)/python -m pytest $(IN_PARALLEL) \
		-m "not slow and not cluster" \
		tests/estimators/test_dask.py tests/em/test_em.py

# An environment of the core tests: its folder, its Python, pip's options.
define set_up
	test -x $(1)/bin/python || $(2) -m venv $(1)
	$(1)/bin/python -m pip install --quiet $(3) --editable '.[parquet,plot,xarray]' \
		$(OF_CORE)
endef
RUN_CORE = -m pytest $(IN_PARALLEL) -m "not slow and not cluster" $(CORE)

# Python's newest has the newest of all packages, and the lowest versions Python's lowest.
setup-lowest:
	$(call set_up,.venv-lowest,$(PYTHON),--constraint .ci/lowest.txt)

setup-newest:
	$(call set_up,.venv-newest,$(NEWEST))

test-lowest: setup-lowest
	.venv-lowest/bin/python $(RUN_CORE)

test-newest: setup-newest
	.venv-newest/bin/python $(RUN_CORE)

# What is published, in an environment of its own: built, installed, and the demo run.
test-wheel: $(READY)
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet "$$(echo dist/*.whl)[plot]"
	cd dist && ../.venv-wheel/bin/python -m daskgmm demo --size 0.5 --folder demo
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet dist/*.tar.gz
	cd dist && ../.venv-wheel/bin/python -m daskgmm --version
	cd dist && ../.venv-wheel/bin/python -c 'import daskgmm; daskgmm.GaussianMixture()'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees \
		-b html docs docs/_build/html

bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-wheel build dist demo-output .pytest_cache .mypy_cache .ruff_cache
	rm -rf .hypothesis dask-worker-space docs/_build docs/notebooks docs/api/generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
