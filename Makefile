# The few commands a newcomer needs. A fresh machine needs Python >= 3.10 with venv and headers, make and a C++20 compiler; cmake,
# ninja and everything else come from pip into .venv.
#
#   make demo        set up, then the main job on synthetic people
#   make test        set up, then every test (test-all: the slow ones too)
#   make bench       set up, then the benchmark grid of this machine
#   make lint        ruff, clang-format, mypy
#   make wheel       wheels for this Python and those of PYTHONS="python3.10 python3.13" (CUDA where nvcc is)
#   make wheel-test  install them without a compiler in TORCHES="python3.10:2.11.0 python3.13:2.15.0" and run the op tests
#   make docs        the documentation as pages in build/site
#   make gpu-check   on a machine with an NVIDIA GPU: build with CUDA, test, measure, write a report
#
# TORCH_SPEC="torch==2.11.0" chooses another torch; PIP_INDEX_URL another index (a CPU build, say). A torch that PYTHON already has is
# used as it is when SYSTEM_TORCH=1.
PYTHON ?= python3
VENV ?= .venv
TORCH_SPEC ?= torch==2.13.0
SYSTEM_TORCH ?= 0
REIDFAST_CUDA ?= auto
BIN := $(abspath $(VENV))/bin
export REIDFAST_CUDA
export PATH := $(BIN):/usr/local/cuda/bin:$(PATH)

CPP := $(shell find csrc tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)
NATIVE := setup.py CMakeLists.txt $(wildcard cmake/*.cmake) $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test test-all bench lint format gpu-check wheel wheel-test docs setup clean
setup: $(VENV)/.built

demo: setup
	$(BIN)/python -m reidfast demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python -m benchmarks.run

# Installs nothing and needs no network: runs in the Python at hand, which must have torch with CUDA (the file's head says what else).
gpu-check:
	$(PYTHON) tools/gpu_check.py

PYTHONS ?=
TORCHES ?= $(BIN)/python
wheel: $(VENV)/.packages
	$(BIN)/python tools/wheels.py build --pythons $(PYTHONS)

wheel-test: $(VENV)/.packages
	$(BIN)/python tools/wheels.py test --environments $(TORCHES)

docs: $(VENV)/.packages
	$(BIN)/python tools/requirements.py docs > $(VENV)/requirements-docs.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/python tools/figures.py --check
	$(BIN)/python tools/wordlist.py

format: $(VENV)/.packages
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# torch first and alone: whatever depends on it must not pull another build.
$(VENV)/.torch:
	$(PYTHON) -m venv $(if $(filter 1,$(SYSTEM_TORCH)),--system-site-packages) $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH_SPEC)"
	touch $@

$(VENV)/.packages: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel "cmake>=3.25,<5" ninja pybind11
	$(BIN)/python tools/requirements.py dev report train onnx > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.packages $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf build dist *.egg-info reidfast/_C*.so reidfast/libreidfast*.so reidfast/_build_info.json
