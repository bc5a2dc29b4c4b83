# Every target sets up what it needs in .venv/ (nothing is written outside the clone but pip's own cache).
#   make quickstart PYTHON=python3.12   another interpreter, 3.11 or newer
#   make setup UV=1                     uv in place of pip; pip alone is always enough
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PARTS  := kernels chat router optim attention moe serve
PARTS_SRC := $(PARTS:%=packages/%/src)
PYPROJECTS := pyproject.toml $(PARTS:%=packages/%/pyproject.toml)
EDITABLE := $(PARTS:%=-e packages/%) -e .

# Editable builds without isolation (--no-build-isolation) need hatchling and editables beforehand, and are
# five times faster. torch comes first and through the constraints: what asks for a torch later finds it there.
ifdef UV
  MAKE_VENV = uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV)
  INSTALL   = VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet -c constraints.txt
else
  MAKE_VENV = $(PYTHON) -m venv $(VENV)
  INSTALL   = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

RUN := $(VENV)/.stamp-run
DEV := $(VENV)/.stamp-dev

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8

.PHONY: help setup quickstart nano test test-slow test-isolated lint fmt demo docs codegen bench bench-gpu clean

help:  ## print this list
	@[ -t 1 ] && [ -z "$${NO_COLOR:-}" ] && on=$$'\e[36m' off=$$'\e[0m' || on= off=; awk -v on="$$on" -v off="$$off" \
	  'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %smake %-14s%s %s\n", on, $$1, off, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(RUN) $(DEV)  ## make .venv with longcat (editable) and the development tools
	@echo "ready: $(BIN)/longcat, and '. $(BIN)/activate' puts it on the path"

quickstart: $(RUN)  ## train a small LongCat-Flash on real text, generate from it, write a report
	@$(BIN)/longcat train --quickstart

nano: $(RUN)  ## make the shipped nano weights anew (ten minutes on two cores)
	@$(BIN)/longcat train --preset nano --steps 2200 --seed 0 --distill-steps 1700 --out runs/nano-shipped
	@$(BIN)/longcat export --model runs/nano-shipped --dtype bf16 --out src/longcat/flash/nano
	@$(BIN)/longcat bench acceptance runs/nano-shipped
	@$(BIN)/python tools/nano_card.py runs/nano-shipped src/longcat/flash/nano

test: $(DEV)  ## run the tests that need neither minutes nor a GPU
	@$(PYTEST) -m "not slow and not gpu"

test-slow: $(DEV)  ## run the tests that take minutes
	@$(PYTEST) -m "slow and not gpu"

test-isolated: $(DEV)  ## install each package alone from its wheel and run its tests (PART=router for one)
	@$(BIN)/python tools/test_isolated.py $(PART)

lint: $(DEV)  ## ruff, mypy --strict, the import contracts, the layout rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src $(PARTS_SRC) tools/check_layout.py tools/test_isolated.py tools/nano_card.py tools/site.py tools/columns.py
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_layout.py

fmt: $(DEV)  ## format the sources and mend what ruff can mend
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

demo: $(RUN)  ## play every walkthrough; fails when a claim fails
	@$(BIN)/longcat demo all --no-pause

docs: $(DEV)  ## build the site into site/, executing every tutorial; works offline
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && echo "built: site/index.html"

codegen: $(DEV)  ## compile every Triton kernel for sm_90a (no GPU needed) and write the tables of generated code and limits
	@env -u TRITON_INTERPRET TRITON_CACHE_DIR=$$(mktemp -d) $(BIN)/python -m longcat.kernels.proof.codegen \
	  --write packages/kernels/src/longcat/kernels/proof/generated_code.md
	@$(BIN)/python -m longcat.kernels.proof.roofline --write packages/kernels/src/longcat/kernels/proof/roofline.md

bench: $(DEV)  ## measure kernels, training and serving on the CPU, the last two against transformers
	@$(BIN)/longcat bench kernels
	@$(BIN)/longcat bench train
	@$(BIN)/longcat bench recompute
	@$(BIN)/longcat bench serve

DEVICE ?= cuda
bench-gpu: $(RUN)  ## time every kernel on a CUDA device (DEVICE=cpu: toy sizes, interpreted, not timed)
ifeq ($(DEVICE),cuda)
	@$(BIN)/longcat bench kernels --device cuda
endif
	@$(BIN)/longcat bench kernels --device $(DEVICE) --decoding $(if $(filter cpu,$(DEVICE)),--out build/bench)
	@$(BIN)/longcat bench kernels --device $(DEVICE) --training $(if $(filter cpu,$(DEVICE)),--out build/bench)

clean:  ## remove what was built and cached; keeps .venv/ and your runs/
	@rm -rf site dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . \( -path ./$(VENV) -o -path ./.git -o -path ./runs \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"longcat needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Try: make setup PYTHON=python3.12")'
	@echo "making $(VENV) ..."
	@$(MAKE_VENV)
	@touch $@

$(RUN): $(VENV)/.stamp-venv constraints.txt tools/hatch_tutorials.py $(PYPROJECTS)
	@echo "installing torch (the first time takes minutes) ..."
	@$(INSTALL) torch
	@$(INSTALL) hatchling editables
	@echo "installing longcat ..."
	@$(INSTALL) --no-build-isolation $(EDITABLE)
	@touch $@

$(DEV): $(RUN) requirements-dev.txt
	@echo "installing the development tools ..."
	@$(INSTALL) -r requirements-dev.txt
	@touch $@
