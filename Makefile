# make demo   restores a degraded photograph, from nothing: environment, build, run
# make test   environment with the development tools, linters, tests
# make test-gpu   kernels and captured chains on a CUDA device, kernels also under compute-sanitizer, and a table of their
#                 times; needs nvcc
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-gpu bench bench-check lint format clean

# The one place where torch is pinned: results are compared to the last bit within one version of it.
TORCH ?= torch==2.13.0
TORCH_OTHERWISE := torch>=2.9

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
  $(shell $(p) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc kernels python cmake CMakeLists.txt pyproject.toml -type f ! -name '*.pyc' ! -name '*.so' 2>/dev/null)
NATIVE := $(shell find csrc kernels tests/simt tests/counted -name '*.cpp' -o -name '*.cu' -o -name '*.h' 2>/dev/null)

demo: $(VENV)/installed
	$(BIN)/python benchmarks/demo.py

test: lint
	$(BIN)/python -m pytest tests

test-gpu: $(VENV)/developed
	$(BIN)/python -c 'import sys, torch, rmp_fast.cuda_ops as o; sys.exit(o.unavailable_reason(torch.device("cuda")))'
	$(BIN)/python -m pytest tests/test_kernels.py tests/test_gpu.py tests/test_gpu_graphs.py tests/test_bench_device.py -k 'cuda or gpu'
	@for tool in memcheck racecheck; do if command -v compute-sanitizer >/dev/null; then \
	  compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	    $(BIN)/python -m pytest tests/test_kernels.py -q -k 'cuda and (test_step or test_separable or test_spectral or test_clip)'; \
	else echo "compute-sanitizer $$tool: not installed, not run"; fi; done
	$(BIN)/python benchmarks/bench_gpu.py

bench: $(VENV)/developed
	$(BIN)/python -m pytest benchmarks

# The kernels against copies in the same run, beside the accepted results.
bench-check: $(VENV)/developed
	$(BIN)/python -m pytest benchmarks/bench_kernels.py --benchmark-json=kernels.json
	$(BIN)/python benchmarks/compare_stored.py benchmarks/accepted.json kernels.json

lint: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

format: $(VENV)/developed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

clean:
	rm -rf $(VENV) build dist demo wheelhouse *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks

$(VENV)/torch:
	@if [ -z "$(PYTHON)" ]; then echo 'make: Python 3.11 or later with its venv module is needed' >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet '$(TORCH)' || $(PIP) install --quiet '$(TORCH_OTHERWISE)'
	touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(PIP) install --quiet .
	touch $@

$(VENV)/developed: $(VENV)/torch $(SOURCES) constraints.txt
	$(PIP) install --quiet --constraint constraints.txt -C cmake.define.RMP_FAST_TEST_PATHS=ON '.[dev]' \
	  "torch==$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))')"
	touch $@ $(VENV)/installed
