# `make demo` sets up .venv with what it needs, `make test` adds the rest; a second run finds it
# ready. Another Python: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
DEMO_KERAS := $(VENV)/.demo-keras
DEMO_LIGHTNING := $(VENV)/.demo-lightning
DOCS := $(VENV)/.docs
NATIVE := $(wildcard tensorstate_callbacks/_native/*.pyx tensorstate_callbacks/_native/*.hpp)

export MLFLOW_DISABLE_TELEMETRY ?= true
export TF_CPP_MIN_LOG_LEVEL ?= 2
export NO_MKDOCS_2_WARNING ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: demo demo-lightning study test docs lint types clean bench soak soak-interrupts fuzz
.PHONY: test-kernels test-neon test-asan test-ubsan test-tsan test-wheels
.PHONY: test-without-keras test-pages test-keras-jax test-keras-tensorflow test-keras-torch
.PHONY: test-keras-versions test-lightning-versions

demo: $(DEMO_KERAS)
	$(RUN) examples/keras_mnist.py

demo-lightning: $(DEMO_LIGHTNING)
	$(RUN) examples/lightning_mnist.py

# What docs/studies/does_it_help.md tells, in some 100 minutes of processor time on a busy machine;
# goes on where it was stopped.
study: $(READY)
	$(RUN) examples/label_noise.py --seeds 10 --epochs 10 --framework both --noise 0 0.25 0.5 0.75
	$(RUN) examples/batch_norm_dropout.py --seeds 5 --epochs 6 --framework both --network both

# Three at a time, since some wait for servers and browsers, the longest first; what each prints stays
# together.
TESTS := test-keras-tensorflow test-without-keras test-keras-jax test-pages test-keras-torch types docs

test: lint
	$(MAKE) --jobs=3 --keep-going --output-sync=target --no-print-directory $(TESTS)

# Each keeps a cache of its own, and one thread to compute with: they share the processor. A crash of
# the interpreter is told with the test that it came in.
PYTEST = OMP_NUM_THREADS=1 MAKEFLAGS= TENSORSTATE_RUNNING_TEST=$(CURDIR)/.pytest_cache/$@.running \
	$(RUN) -m pytest --quiet --durations=15 -o cache_dir=.pytest_cache/$@
TELL_CRASH = || { code=$$?; [ $$code -lt 128 ] || \
	echo "crashed in $$(cat .pytest_cache/$@.running)"; exit $$code; }

# What pages and examples say, and the pages of TensorBoard and MLflow.
PAGES := $(wildcard $(addprefix tests/test_,*page*.py browser_*.py examples.py notebooks.py readme.py \
	site.py studies.py tutorials.py))

test-pages: $(READY)
	$(PYTEST) $(PAGES) $(TELL_CRASH)

test-without-keras: $(READY)
	$(PYTEST) --ignore-glob='tests/test_keras_*.py' $(PAGES:%=--ignore=%) $(TELL_CRASH)

# What the tests of Keras say, on each of its backends.
test-keras-jax test-keras-tensorflow test-keras-torch: test-keras-%: $(READY)
	KERAS_BACKEND=$* $(PYTEST) tests/test_keras_*.py $(TELL_CRASH)

# Interrupts at every line, and many at random times: half an hour.
soak-interrupts: $(READY)
	TENSORSTATE_SOAK=1 $(RUN) -m pytest tests/test_torch_interrupts.py tests/test_lightning_interrupts.py
	for backend in tensorflow jax torch; do KERAS_BACKEND=$$backend TENSORSTATE_SOAK=1 \
		$(RUN) -m pytest tests/test_keras_interrupts.py || exit 1; done

# Random layouts, number types and thresholds against plain comparisons, for every kernel.
CASES ?= 20000
AGREE := -std=c++17 -O3 -pthread -Wall -Wextra -Itensorstate_callbacks/_native tests/native/kernels_agree.cpp

test-kernels:
	@mkdir -p build
	$(CXX) $(AGREE) -o build/kernels_agree
	build/kernels_agree $(CASES)

# Debian: apt-get install g++-aarch64-linux-gnu qemu-user
test-neon:
	@mkdir -p build
	aarch64-linux-gnu-g++ -static $(AGREE) -o build/kernels_agree_aarch64
	qemu-aarch64 build/kernels_agree_aarch64 $(CASES)

# The compiled counter's tests under one sanitizer; CXX=clang++ takes clang's (for threads 16's).
test-asan: $(READY)
	$(RUN) tests/native/sanitize.py address

test-ubsan: $(READY)
	$(RUN) tests/native/sanitize.py undefined

test-tsan: $(READY)
	$(RUN) tests/native/sanitize.py thread

# Wheels of the last commit, in empty environments of each Python that is found as python3.10 and
# so on; with pyenv: PYENV_VERSION=3.10.13:3.11.7:... make test-wheels.
test-wheels: $(READY)
	$(RUN) -m nox --session wheels

# Hostile inputs, made by libFuzzer; takes clang. Another SEED, other inputs.
RUNS ?= 200000
SEED ?= 1
fuzz: $(READY)
	$(RUN) tests/native/fuzz.py $(RUNS) $(SEED)

# PART="count memory" measures these alone, SAVE=--save writes benchmarks/RESULTS.md.
bench: $(READY)
	$(RUN) -m benchmarks $(PART) $(SAVE)

# Hours: 500 epochs and 300 fits in each framework, whose time and memory must not grow.
soak: soak-interrupts
	$(RUN) -m benchmarks.soak $(SAVE)

# The tests of Keras under earlier releases, each in an environment of its own.
test-keras-versions: $(READY)
	$(RUN) -m nox --session keras

# Lightning's other name, and older versions, each in an environment of its own.
test-lightning-versions: $(READY)
	$(RUN) -m nox --session lightning-2.0.9 lightning-2.2.5 lightning-2.4.0 lightning-namespace

# The site, into build/site; any warning is an error.
docs: $(DOCS)
	$(RUN) -m mkdocs build --strict --quiet

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY)
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) .nox build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f tensorstate_callbacks/_native/*.so tensorstate_callbacks/_native/_counter.cpp

SOURCES := pyproject.toml setup.py constraints.txt tools/set_up.py $(NATIVE)
$(DEMO_KERAS) $(DEMO_LIGHTNING) $(DOCS) $(READY): $(SOURCES)
	@$(PYTHON) tools/set_up.py $(if $(filter $@,$(READY)),dev,$(@:$(VENV)/.%=%)) --folder $(VENV)
