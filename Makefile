# `make demo` and `make test` set up .venv by themselves; a second run finds it ready.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
NATIVE := $(wildcard tensorstate_callbacks/_native/*.pyx tensorstate_callbacks/_native/*.hpp)

export MLFLOW_DISABLE_TELEMETRY ?= true
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo demo-lightning test lint types clean

demo: $(READY)
	$(RUN) examples/keras_mnist.py

demo-lightning: $(READY)
	$(RUN) examples/lightning_mnist.py

test: lint types
	$(RUN) -m pytest

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f tensorstate_callbacks/_native/*.so tensorstate_callbacks/_native/_counter.cpp

# Installed in place, so that the compiled counter is rebuilt only when its sources change.
$(READY): pyproject.toml setup.py constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
