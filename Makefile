# `make demo` and `make test` are all a fresh machine needs: each sets up `.venv` first, which is instant once done.
# Another interpreter: make demo PYTHON=/path/to/python3.12
PYTHON ?= python3
BIN := .venv/bin

# The installed programs: lm-mixup, python, and ninja, with which GPU kernels are built.
WITH_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"

TWO_AT_A_TIME := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-cluster setup setup-dev lint docs audit clean

demo: setup
	$(WITH_PATH) lm-mixup run configs/quickstart.yaml --run-dir runs/demo
	@echo "The report: $(CURDIR)/runs/demo/report/index.html"

# Without a GPU two files are tested at a time: much of a test is one process that starts.
test: setup-dev
	@if nvidia-smi -L >/dev/null 2>&1; then $(WITH_PATH) python -m pytest; \
	else $(WITH_PATH) DS_ACCELERATOR=cpu python -m pytest $(TWO_AT_A_TIME); fi

# The unit tests alone: no model is loaded.
test-fast: setup-dev
	$(WITH_PATH) DS_ACCELERATOR=cpu python -m pytest tests/unit $(TWO_AT_A_TIME)

# Several Ray nodes on this machine, an object store, cut cables and random kills: an hour or two.
test-cluster: setup-dev
	$(WITH_PATH) DS_ACCELERATOR=cpu python -m pytest tests/cluster
	$(WITH_PATH) DS_ACCELERATOR=cpu PYTHONPATH=.:tests/support python tests/chaos/rounds.py --rounds 20 --seed 0

setup:
	@$(PYTHON) bootstrap.py

setup-dev:
	@$(PYTHON) bootstrap.py --dev

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site: it opens without a server.
docs: setup-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Known faults of the packages that the CPU image pins, as docs/security.md says.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement cluster/requirements-cpu.lock

# Leaves runs/ alone: it is yours.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
