# Each command first creates the environment in $(VENV) if it is missing or out of date. `make help` lists them all.

VENV ?= .venv
PYTHON ?= python3 python3.13 python3.12 python3.11
PROFILE ?= paper
DATASET ?= auto
NB ?=
FORCE ?=
LAB_FLAGS ?=

ifneq ($(words $(VENV)),1)
$(error VENV must be one path without spaces, got '$(VENV)')
endif

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HEADING = printf '\n== %s\n'

.DEFAULT_GOAL := help
.PHONY: help figures plots test bench readme lab html docker lock env clean

# The user's environment reaches what make starts as it is, but for the variables that are set here and in recipes;
# `make help` lists all that matter.

# No window is ever opened. Kernels need matplotlib's inline backend instead, so $(KERNELS) below is without this, and
# scripts.figures takes it out of the kernels' environment. Nor must a slow machine show bars where nbval compares.
figures plots test bench readme html: export MPLBACKEND = Agg

# By default torch's threads spin while they wait for each other: faster on an idle machine, which `bench` is for, and many
# times slower beside any other work. Let them sleep, unless the user has decided; both are read when torch is loaded.
figures plots test readme lab html: export OMP_WAIT_POLICY ?= passive
figures plots test readme lab html: export GOMP_SPINCOUNT ?= 0

# Before whatever starts kernels outside scripts.figures. A kernel works in its notebook's folder: without the path it
# would import the library of the checkout that was installed last, when several share an environment; and with a
# backend that draws into files it would show no picture.
KERNELS = unset MPLBACKEND; export JUPYTER_PREFER_ENV_PATH=1 PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}";

help: ## list the commands and their options
	@awk -F ' ## ' '/^[a-z]+:.* ## / { split($$1, name, ":"); printf "  make %-9s %s\n", name[1], $$2 }' $(MAKEFILE_LIST)
	@printf '\nOptions:\n'
	@printf '  %-18s %s\n' \
	  NB=03 'one notebook only (figures, plots)' \
	  PROFILE=smoke 'small, in minutes, into build/ (figures, plots, html; else: paper)' \
	  PROFILE=long 'the notebooks of long trainings, in hours; interrupted, it goes on (figures; NB=12)' \
	  DATASET=mnist5k 'or mnist; else auto: full MNIST if it can be had (in the folder PAPERLIB_DATA)' \
	  FORCE=1 'make again what is up to date (figures)' \
	  VENV=.venv 'folder of the environment' \
	  PYTHON=python3.12 'what creates the environment (3.11 to 3.13; else the first such one found)'
	@printf '\nEnvironment:\n'
	@printf '  %-24s %s\n' \
	  PAPERLIB_DATA 'folder of the full data sets; else paperlib in XDG_CACHE_HOME or ~/.cache' \
	  OMP_WAIT_POLICY 'else passive: threads that wait sleep (not in bench)' \
	  GOMP_SPINCOUNT 'else 0, likewise' \
	  OMP_NUM_THREADS 'torch threads of a command; figures always take 1 a process' \
	  CUDA_VISIBLE_DEVICES 'the GPUs to use (bench: none)' \
	  PIP_EXTRA_INDEX_URL 'one more index for env; others of pip likewise (PIP_...)' \
	  PYTHONPATH 'kept, behind this checkout' \
	  MPLBACKEND 'not used: Agg, and in kernels the inline backend' \
	  PAPERLIB_LOG 'set for kernels: where their progress is written' \
	  PYTHONWARNINGS 'set for the kernels of test: ignore' \
	  JUPYTER_PREFER_ENV_PATH 'set for kernels: 1, kernels of this environment come first' \
	  KINETO_LOG_LEVEL 'set for bench: 99'

RUN_FLAGS = --profile $(PROFILE) --dataset $(DATASET) $(if $(NB),--only $(NB))

figures: $(STAMP) ## make every figure from the data up (NB=03: one notebook; PROFILE=smoke: small, in minutes)
	@$(BIN)/python -m scripts.figures $(RUN_FLAGS) $(if $(filter-out 0,$(FORCE)),--force)

plots: $(STAMP) ## draw the figures again from the committed rows; only notebook 0 trains
	@$(BIN)/python -m scripts.figures $(RUN_FLAGS) --redraw

test: $(STAMP) ## check style, types, tests and the committed notebooks
	@$(HEADING) 'ruff: style'
	@$(BIN)/ruff check .
	@$(HEADING) 'ruff: format'
	@$(BIN)/ruff format --check .
	@$(HEADING) 'mypy: types'
	@$(BIN)/mypy
	@$(HEADING) 'pytest: tests, side by side'
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
	@$(HEADING) 'nbval: committed notebooks'
	@$(KERNELS) PAPERLIB_LOG=/dev/null PYTHONWARNINGS=ignore \
	  $(BIN)/python -m pytest --nbval --nbval-current-env notebooks

# Targets are for the CPU, which is then the processor that the rows name; the profiler is kept from telling of its own.
bench: $(STAMP) ## measure what steps and certificates cost, as ratios beside their targets, in minutes
	@CUDA_VISIBLE_DEVICES= KINETO_LOG_LEVEL=99 $(BIN)/python -m scripts.bench

readme: $(STAMP) ## write the numbers of README.md anew from the committed rows
	@$(BIN)/python -m scripts.readme

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(KERNELS) $(BIN)/jupyter lab $(LAB_FLAGS) notebooks

html: $(STAMP) ## write the notebooks and the library's reference as pages for a browser, into build/html
	@$(BIN)/python -m scripts.html --profile $(PROFILE) --dataset $(DATASET)

docker: ## build the container image `provae`
	@docker build -t provae .

# To raise a version: change pyproject.toml, or `pip install -U` it in the environment; then `make lock`.
# torch brings the CUDA libraries of its platform, at the versions it was built for; a lock for all platforms has none,
# and no builds for one of them either, such as 2.14.1+cpu.
lock: env ## write requirements.lock anew from pyproject.toml and the environment
	@$(PIP) -e '.[test]'
	@mkdir -p build
	@$(BIN)/python -m pip freeze --all --exclude-editable > build/freeze.txt
	@{ sed -n '/^#/p' requirements.lock; \
	  sed -E '/^(pip|wheel|triton|nvidia-[^=]*|cuda-[^=]*)==/d; s/\+[a-z0-9.]+$$//' build/freeze.txt; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock
	@touch $(STAMP)

env: $(STAMP) ## create or update the environment and nothing else

clean: ## remove build/ and caches (committed results and the environment stay)
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.git -prune -o -path './$(VENV)' -prune -o -type d \
	  '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf '{}' +

# ---- the environment: python -m venv and pip from the lock; the stamp is written last, so half an install has none

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation
IN_RANGE = import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13)
CAN_CREATE = $(IN_RANGE); import venv, ensurepip
HAS_PIP = $(IN_RANGE); import pip
# the first of some interpreters that passes a check; pyenv's shims exist but fail for versions not in use
first = $(shell for python in $(1); do "$$python" -c '$(2)' >/dev/null 2>&1 && echo "$$python" && break; done)

NO_PYTHON = no Python 3.11 to 3.13 among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python
NO_VENV = $(call first,$(PYTHON),$(IN_RANGE)) lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)
creator = $(or $(call first,$(PYTHON),$(CAN_CREATE)),$(error \
  $(if $(call first,$(PYTHON),$(IN_RANGE)),$(NO_VENV),$(NO_PYTHON))))
# a folder that is no environment is never emptied
clear = $(if $(wildcard $(VENV)/pyvenv.cfg),--clear)

$(STAMP): requirements.lock pyproject.toml
	@rm -f $@
	@$(if $(call first,$(BIN)/python,$(HAS_PIP)),:,$(creator) -m venv $(clear) $(VENV))
	@echo 'Installing requirements.lock into $(VENV) (a first time: some minutes, several GB on Linux)'
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps -e .
	@touch $@
