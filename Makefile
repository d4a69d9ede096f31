# Every target sets up what it needs first: .venv, the pinned requirements, and memmod built and installed editable.
# On a machine whose torch comes from elsewhere: make VENV=/path/to/venv
VENV ?= .venv
PYTHON ?= python3
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
export PATH := $(abspath $(VENV))/bin:$(PATH)

REQUIRED := $(VENV)/.stamp-requirements
DEVELOP := $(VENV)/.stamp-dev
INSTALLED := $(VENV)/.stamp-memmod
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.DELETE_ON_ERROR:
.PHONY: demo test aot gpu-report aot-triton-3.6 bench sanitize lint format clean distclean

demo: $(INSTALLED)
	$(VENV)/bin/memmod demo

test: export OMP_NUM_THREADS := 1
test: $(INSTALLED) $(DEVELOP)
	$(VENV)/bin/python -m pytest -n 2 -m "not aot and not interpreter and not cuda_host and not cuda_host_planted"
	@echo "Triton kernels, run on the CPU by Triton's interpreter:"
	TRITON_INTERPRET=1 $(VENV)/bin/python -m pytest -n 2 -m interpreter tests/triton
	TRITON_INTERPRET=1 MEMMOD_BACKEND=triton $(VENV)/bin/python -m pytest -n 2 $(INTERPRETED)
	@echo "Triton and CUDA kernels, compiled ahead of time and inspected:"
	$(VENV)/bin/python -m pytest -n 2 -m aot tests/triton tests/cuda
	@echo "CUDA kernels, run on the CPU under the host shim:"
	$(VENV)/bin/python -m tests.cuda.run plain -n 2 $(ON_HOST)
	$(VENV)/bin/python -m tests.cuda.run plain -n 2 tests/cuda -m cuda_host
	$(VENV)/bin/python -m tests.cuda.run asan -n 2 tests/cuda -m cuda_host
	$(VENV)/bin/python -m tests.cuda.run tsan -n 2 tests/cuda -m cuda_host
	@echo "CUDA kernels with planted errors, each of which has to be caught:"
	$(VENV)/bin/python -m pytest -n 2 tests/cuda -m cuda_host_planted

aot: $(INSTALLED) $(DEVELOP)
	$(VENV)/bin/python -m pytest -n 2 -m aot tests/triton tests/cuda

gpu-report: $(INSTALLED) $(DEVELOP)
	$(VENV)/bin/python -m tests.triton.report

# The same checks with the compiler that some GPU machines have, beside .venv's own.
TRITON_OLD := build/triton-3.6
aot-triton-3.6: $(INSTALLED) $(DEVELOP) $(TRITON_OLD)/.stamp
	PYTHONPATH=$(abspath $(TRITON_OLD)) $(VENV)/bin/python -m pytest -n 2 -m aot tests/triton

$(TRITON_OLD)/.stamp: requirements/triton-3.6.txt | $(VENV)/bin/python
	rm -rf $(@D)
	$(PIP) --target $(@D) --no-deps -r $<
	@touch $@

KERNEL_TESTS := tests/ops/test_modulated_linear.py tests/ops/test_modulated_conv2d.py tests/ops/test_modulate_output.py \
  tests/ops/test_determinism.py tests/ops/test_gradients.py tests/ops/test_torch_library.py
# What Triton's interpreter serves of them: neither fp64 nor bf16, and its library products follow the threads.
INTERPRETED := $(KERNEL_TESTS) -k "not gradcheck and not autocast and not threads"
# What the CUDA kernels serve: not fp64; the library's products beside them follow the threads.
ON_HOST := $(KERNEL_TESTS) -k "not gradcheck and not threads"

bench: $(INSTALLED) $(DEVELOP)
	$(VENV)/bin/python -m pytest benchmarks --benchmark-only

# The op tests against a CPU extension that stops at memory errors and undefined behaviour, built from a copy of the
# sources. Python has no sanitiser, so it is loaded before it; with libstdc++, whose exceptions it watches.
SANITIZED := build/sanitize
PRELOAD = $(foreach library,asan stdc++,$(shell $${CXX:-c++} -print-file-name=lib$(library).so))

sanitize: $(REQUIRED) $(DEVELOP)
	mkdir -p $(SANITIZED)
	tar -c --exclude='*.so' --exclude=_build_info.json --exclude=__pycache__ \
	  setup.py pyproject.toml README.md csrc memmod kernels benchmarks tests | tar -x -C $(SANITIZED)
	cd $(SANITIZED) && MEMMOD_SANITIZE=1 MEMMOD_CUDA=0 python setup.py --quiet build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \
	  UBSAN_OPTIONS=print_stacktrace=1 python -m pytest --capture=sys tests/ops -k "not reference and not compile and not isa"

lint: $(DEVELOP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	find csrc tests/cuda/*.cu -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(VENV)/bin/typos

format: $(DEVELOP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	find csrc tests/cuda/*.cu -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format -i

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .benchmarks memmod/_cpu*.so memmod/_cuda*.so memmod/_build_info.json $(INSTALLED)
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

$(INSTALLED): $(REQUIRED) $(SOURCES)
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@
