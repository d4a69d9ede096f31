# Every target sets up what it needs first: .venv, the pinned requirements, and memmod built and installed editable.
# On a machine whose torch comes from elsewhere: make VENV=/path/to/venv
VENV ?= .venv
PYTHON ?= python3
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
export PATH := $(abspath $(VENV))/bin:$(PATH)

REQUIRED := $(VENV)/.stamp-requirements
DEVELOP := $(VENV)/.stamp-dev
DOCUMENT := $(VENV)/.stamp-docs
INSTALLED := $(VENV)/.stamp-memmod
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

SHELL := bash
.DELETE_ON_ERROR:
.PHONY: demo examples check test test-all gpu aot gpu-report aot-triton-3.6 bench compat docs sanitize lint format
.PHONY: clean distclean

demo: $(INSTALLED)
	$(VENV)/bin/memmod demo

# As many processes of pytest as there are processors, up to 8, each with one thread.
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
PYTEST := $(VENV)/bin/python -m pytest -n $(WORKERS)
check test test-all aot aot-triton-3.6 sanitize: export OMP_NUM_THREADS := 1
check test test-all aot aot-triton-3.6 sanitize: export NO_COLOR := 1

# A suite is a file, build/suites/NAME, with the closing line of its last run that passed; it is run again when a file
# that it reads has changed, and with FORCE=1. Its output is in build/suites/NAME.log.
SUITES := build/suites
files = $(shell find $(1) \( -name __pycache__ -o -name '*.so' -o -name _build_info.json \) -prune -o -print)
# With a slash, since docs and examples are targets too.
EVERYTHING := $(call files,memmod kernels csrc tests benchmarks examples/ docs/ README.md CONTRIBUTING.md Makefile MANIFEST.in)
GPU_SOURCES := $(call files,memmod/ops kernels csrc tests/ops tests/triton tests/cuda benchmarks docs/gpu-report.md) \
  memmod/functional.py memmod/errors.py pyproject.toml
define run
@mkdir -p $(SUITES)
@echo "== $(@F)"
set -o pipefail; ($(1)) 2>&1 | tee $@.log
@tail -n 1 $@.log > $@
endef
# Of some suites how each ended.
closing = @for suite in $(notdir $(1)); do echo "$$suite:"; cat $(SUITES)/$$suite; done

# In one process: the markers say what needs another.
PLAIN := not aot and not interpreter and not cuda_host and not cuda_host_planted
TEST := $(addprefix $(SUITES)/,memmod interpreter interpreted-ops machine-code cuda-on-cpu cuda-ops-on-cpu)
TEST_ALL := $(addprefix $(SUITES)/,interpreter-all cuda-planted cuda-asan cuda-tsan sanitize interpreted-ops-all \
  cuda-ops-on-cpu-all machine-code-all fuzz triton-3.6 exhaustive)
ifdef FORCE
.PHONY: $(TEST) $(TEST_ALL)
endif
$(TEST) $(TEST_ALL): $(INSTALLED) $(DEVELOP)

# After each change: within two minutes.
check: lint $(INSTALLED) $(DEVELOP)
	$(PYTEST) -q -m "$(PLAIN) and not slow and not exhaustive"

# Whether memmod works here: within ten minutes.
test: $(TEST)
	$(call closing,$^)

# The rest.
test-all: $(TEST_ALL)
	$(call closing,$^)

$(SUITES)/memmod: $(EVERYTHING)
	$(call run,$(PYTEST) -m "$(PLAIN) and not exhaustive")

# Triton kernels, run on the CPU by Triton's interpreter: their own tests, and the op tests; the large ones apart.
$(SUITES)/interpreter: $(GPU_SOURCES)
	$(call run,TRITON_INTERPRET=1 $(PYTEST) -m "interpreter and not exhaustive" tests/triton)

# What they move of memory, and planted errors.
$(SUITES)/interpreter-all: $(GPU_SOURCES)
	$(call run,TRITON_INTERPRET=1 $(PYTEST) -m "interpreter and exhaustive" tests/triton)

$(SUITES)/interpreted-ops: $(GPU_SOURCES)
	$(call run,TRITON_INTERPRET=1 MEMMOD_BACKEND=triton $(PYTEST) $(INTERPRETED) -m "not exhaustive")

$(SUITES)/interpreted-ops-all: $(GPU_SOURCES)
	$(call run,TRITON_INTERPRET=1 MEMMOD_BACKEND=triton $(PYTEST) $(INTERPRETED) -m exhaustive)

# Triton and CUDA kernels, compiled ahead of time and inspected: for one GPU generation and type, then all others.
$(SUITES)/machine-code: $(GPU_SOURCES)
	$(call run,$(PYTEST) -m "aot and not exhaustive" tests/triton tests/cuda)

$(SUITES)/machine-code-all: $(GPU_SOURCES)
	$(call run,$(PYTEST) -m "aot and exhaustive" tests/triton tests/cuda)

# CUDA kernels, run on the CPU under the host shim: the op tests, their own, these with sanitizers, and planted errors.
$(SUITES)/cuda-ops-on-cpu: $(GPU_SOURCES)
	$(call run,$(VENV)/bin/python -m tests.cuda.run plain -n $(WORKERS) $(ON_HOST) -m "not exhaustive")

$(SUITES)/cuda-ops-on-cpu-all: $(GPU_SOURCES)
	$(call run,$(VENV)/bin/python -m tests.cuda.run plain -n $(WORKERS) $(ON_HOST) -m exhaustive)

$(SUITES)/cuda-on-cpu: $(GPU_SOURCES)
	$(call run,$(VENV)/bin/python -m tests.cuda.run plain -n $(WORKERS) tests/cuda -m cuda_host)

$(SUITES)/cuda-asan $(SUITES)/cuda-tsan: $(SUITES)/cuda-%: $(GPU_SOURCES)
	$(call run,$(VENV)/bin/python -m tests.cuda.run $* -n $(WORKERS) tests/cuda -m cuda_host)

$(SUITES)/cuda-planted: $(GPU_SOURCES)
	$(call run,$(PYTEST) tests/cuda -m cuda_host_planted)

# Many more damaged files than `make test` reads.
$(SUITES)/fuzz: $(EVERYTHING)
	$(call run,$(VENV)/bin/python -m tests.fuzz_files --memory 2000 --runs 500)

# Large networks, orders of calls of a compiled model, killed and resumed, a wheel with its extension, the site.
$(SUITES)/exhaustive: $(EVERYTHING) mkdocs.yml $(DOCUMENT)
	$(call run,$(PYTEST) -m "$(PLAIN) and exhaustive")

aot: $(SUITES)/machine-code $(SUITES)/machine-code-all
	$(call closing,$^)

gpu-report: $(INSTALLED) $(DEVELOP)
	$(VENV)/bin/python -m tests.triton.report

# On a machine with a GPU, and with torch, Triton, nvcc, pytest and timm in PYTHON: installs nothing.
gpu:
	$(PYTHON) -m benchmarks.gpu

# The same checks with the compiler that some GPU machines have, beside .venv's own.
TRITON_OLD := build/triton-3.6
aot-triton-3.6: $(SUITES)/triton-3.6
	$(call closing,$^)

$(SUITES)/triton-3.6: $(GPU_SOURCES) $(TRITON_OLD)/.stamp
	$(call run,PYTHONPATH=$(abspath $(TRITON_OLD)) $(PYTEST) -m "aot and not exhaustive" tests/triton)

$(TRITON_OLD)/.stamp: requirements/triton-3.6.txt | $(VENV)/bin/python
	rm -rf $(@D)
	$(PIP) --target $(@D) --no-deps -r $<
	@touch $@

KERNEL_TESTS := tests/ops/test_modulated_linear.py tests/ops/test_modulated_conv2d.py tests/ops/test_modulate_output.py \
  tests/ops/test_determinism.py tests/ops/test_gradients.py tests/ops/test_torch_library.py
# What Triton's interpreter serves of them: neither fp64 nor bf16, and its library products follow the threads.
INTERPRETED = $(KERNEL_TESTS) -k "not gradcheck and not autocast and not threads"
# What the CUDA kernels serve, and the C++ that calls them: not fp64; the library's products beside them follow the threads.
ON_HOST = $(KERNEL_TESTS) tests/ops/test_eager_on_gpu.py tests/ops/test_linear_fused.py -k "not gradcheck and not threads"

# The examples' own tests, those with heavy frameworks too, in an environment beside .venv that sees its packages.
EXAMPLES := build/examples
examples: $(EXAMPLES)/.stamp
	OMP_NUM_THREADS=1 $(EXAMPLES)/bin/python -m pytest -rs tests/examples
	OMP_NUM_THREADS=1 $(EXAMPLES)/bin/python -m pytest -rs tests/runs/test_coverage.py -k hugging_face_models

$(EXAMPLES)/.stamp: requirements/examples.txt $(DEVELOP) $(INSTALLED)
	$(VENV)/bin/python -m venv --clear $(@D)
	beside=$$($(VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	own=$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	echo "import site; site.addsitedir('$$beside')" > $$own/beside.pth
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench: $(INSTALLED) $(DEVELOP)
	$(VENV)/bin/python -m pytest benchmarks --benchmark-only

# memmod's sdist beside other releases of Python and torch, each pair in an environment that is deleted again: an hour or
# more, gigabytes of downloads. ONLY='3.12 2.14.1' is one pair.
compat: $(REQUIRED)
	$(VENV)/bin/python -m tests.compatibility $(if $(ONLY),--only '$(ONLY)')

# The site, site/index.html: every page, its links and anchors, and the reference of the API; a warning fails it.
docs: $(DOCUMENT)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet

# The op tests against a CPU extension that stops at memory errors and undefined behaviour, built from a copy of the
# sources. Python has no sanitiser, so it is loaded before it; with libstdc++, whose exceptions it watches.
SANITIZED := build/sanitize
PRELOAD = $(foreach library,asan stdc++,$(shell $${CXX:-c++} -print-file-name=lib$(library).so))

sanitize: $(SUITES)/sanitize
	$(call closing,$^)

$(SUITES)/sanitize: $(call files,memmod/ops csrc tests/ops setup.py) memmod/functional.py
	mkdir -p $(SANITIZED)
	tar -c --exclude='*.so' --exclude=_build_info.json --exclude=__pycache__ \
	  setup.py pyproject.toml README.md csrc memmod kernels benchmarks tests | tar -x -C $(SANITIZED)
	cd $(SANITIZED) && MEMMOD_SANITIZE=1 MEMMOD_CUDA=0 python setup.py --quiet build_ext --inplace
	$(call run,cd $(SANITIZED) && LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \
	  UBSAN_OPTIONS=print_stacktrace=1 python -m pytest --capture=sys -n $(WORKERS) tests/ops \
	  -k "not reference and not compile and not isa")

lint: $(DEVELOP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	find csrc tests/cuda/*.cu -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(VENV)/bin/typos
	$(VENV)/bin/pyrefly check --python-interpreter-path $(VENV)/bin/python --progress-bar no

format: $(DEVELOP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	find csrc tests/cuda/*.cu -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format -i

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .benchmarks memmod/_cpu*.so memmod/_cuda*.so memmod/_build_info.json $(INSTALLED)
	find memmod kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "memmod needs Python 3.10 or newer: $(PYTHON) is older; use make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(REQUIRED): requirements/setup.txt | $(VENV)/bin/python
	$(PIP) -r requirements/setup.txt
	@touch $@

$(DEVELOP): requirements/dev.txt $(REQUIRED)
	$(PIP) -r requirements/dev.txt
	@touch $@

$(DOCUMENT): requirements/docs.txt | $(VENV)/bin/python
	$(PIP) -r requirements/docs.txt
	@touch $@

$(INSTALLED): $(REQUIRED) $(SOURCES)
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@
