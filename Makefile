# Every target sets itself up: a virtual environment in .venv with PyTorch, and this package in it
# with its kernels built. The set-up is repeated only when pyproject.toml, setup.py or csrc/ changed.
#
#   make demo PYTHON=python3.12      another Python (3.11 or newer)
#   make demo TORCH='torch==2.11.*'  another PyTorch
#   make demo TORCH_INDEX_URL=...    PyTorch from another package index. Where there is no GPU, the
#                                    index of CPU builds on PyTorch's site saves gigabytes on
#                                    x86-64 Linux: the common index has the CUDA build, which runs
#                                    on the CPU as well.

SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)

# Without a driver of NVIDIA's, the version this project is developed with, which package mirrors
# for machines without a GPU carry as a CPU build; with one, the newest.
TORCH ?= $(if $(wildcard /proc/driver/nvidia/version),torch>=2.11,torch==2.13.0)

PIP := .venv/bin/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

FORMATTED := $(filter %.h %.cpp %.cu %.cuh,$(SOURCES) $(wildcard bench/* tests/emulated_cuda/*))

.PHONY: help install demo test test-fast test-slow lint bench bench-compare gpu-check

help:
	@echo "make demo       teach the bundled model a new subject and write demo/grid.png"
	@echo "make test       the fast tests, then the slow ones (test-fast, test-slow: one of them)"
	@echo "make lint       formatting, ruff, types"
	@echo "make bench      speed of the kernels, into bench/results/latest.json"
	@echo "make bench-compare  a short form, against the ratios committed for this processor"
	@echo "make gpu-check  on a machine with a GPU: proof and speed of the kernels, without .venv"
	@echo "make install    the set-up alone"

demo: install
	.venv/bin/sopt demo --output demo

test:
	$(MAKE) test-fast
	$(MAKE) test-slow

# In JOBS processes of one thread each; the slow tests use all threads.
JOBS ?= 2
test-fast: install
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --dist loadfile --durations=20

test-slow: install
	.venv/bin/python -m pytest -m slow --durations=20

lint: install
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run --Werror $(FORMATTED)

bench: install
	.venv/bin/python -m pytest bench --benchmark-only -s --benchmark-json=bench/results/latest.json

bench-compare: install
	.venv/bin/python -m bench.compare

# Under $(PYTHON) itself, which must have PyTorch for CUDA: it fetches nothing.
gpu-check:
	$(PYTHON) -m bench.gpu_check

install: .venv/installed

.venv/installed: .venv/torch-installed $(SOURCES)
	$(PIP) install --editable '.[dev]'
	@touch $@

.venv/torch-installed:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one: PYTHON=..."; exit 1; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "make: $(PYTHON) is older than Python 3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) install $(if $(TORCH_INDEX_URL),--index-url '$(TORCH_INDEX_URL)') '$(TORCH)'
	@touch $@
