# A fresh machine needs Python 3.10 to 3.13 and make; every target installs the rest into .venv.
#   make demo          a project generated from this checkout, installed and trained
#   make demo-compare  what bf16 and fp16 cost and save there, against fp32, over three seeds
#   make test          the whole test suite
# Only `make bench-gpu` installs nothing: it runs on what the machine has.

PYTHON ?= python3
# Test workers; 1 runs the suite in one process. auto: one per core.
JOBS ?= auto
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO = build/demo
STUDY = build/demo-compare

.DEFAULT_GOAL := help
.PHONY: help demo demo-compare test lint format bench bench-all bench-gpu clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | while IFS='	' read -r name what; do \
	  printf '  make %-13s %s\n' "$$name" "$$what"; done

# --- environment: each stamp is older than what it was installed from only when there is something to do -------------

.venv/base: constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "PYTHON=$(PYTHON) was not found: name a Python 3.10 to 3.13, as in 'make PYTHON=python3.12'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else \
	  "PYTHON=$(PYTHON) is Python %d.%d: name a Python 3.10 to 3.13, as in \"make PYTHON=python3.12\"." % v)'
	"$(PYTHON)" -m venv .venv
	@# The build tools come first and pinned, so that nothing below is built with an unpinned one.
	$(PIP) setuptools hatchling editables
	@touch $@

.venv/demo: .venv/base pyproject.toml
	$(PIP) --no-build-isolation -e . cookiecutter
	@touch $@

# timm needs torchvision, which PyPI has for CUDA only. Both lie apart, for the tests of timm models alone: torchmetrics
# imports every torchvision that it finds, and this one only loads with the help of tests/helpers/stand_ins.
.venv/timm: .venv/base
	$(PIP) --no-deps --upgrade --target $@ timm torchvision
	@touch $@

.venv/dev: .venv/base .venv/timm pyproject.toml
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@ .venv/demo

# --- targets ---------------------------------------------------------------------------------------------------------

demo: .venv/demo ## generate a project from this checkout, install it and train it in bf16
	@if [ -e $(DEMO) ] && [ ! -e $(DEMO)/.made-by-make-demo ]; then \
	  echo "$(DEMO) was not made by 'make demo': move it away first." >&2; exit 1; fi
	@rm -rf $(DEMO) && mkdir -p $(DEMO) && touch $(DEMO)/.made-by-make-demo
	.venv/bin/cookiecutter . --no-input --default-config --output-dir $(DEMO) project_name=Digits
	$(PIP) --no-build-isolation -e $(DEMO)/digits
	cd $(DEMO)/digits && ../../../.venv/bin/python train.py precision=bf16

demo-compare: .venv/demo ## compare precisions over three seeds, on digits and on a language model: about 10 minutes
	@if [ -e $(STUDY) ] && [ ! -e $(STUDY)/.made-by-make-demo ]; then \
	  echo "$(STUDY) was not made by 'make demo-compare': move it away first." >&2; exit 1; fi
	@rm -rf $(STUDY) && mkdir -p $(STUDY) && touch $(STUDY)/.made-by-make-demo
	.venv/bin/cookiecutter . --no-input --default-config --output-dir $(STUDY) project_name=Study task=both
	$(PIP) --no-build-isolation -e $(STUDY)/study
	cd $(STUDY)/study && ../../../.venv/bin/python -m study.ablate precisions=fp32,bf16,fp16 seeds=0,1,2 experiment=digits
	@# Without fp16 on a CPU, which computes in it some fifty times slower.
	cd $(STUDY)/study && ../../../.venv/bin/python -m study.ablate seeds=0,1,2 experiment=lm

test: .venv/dev ## run the whole test suite
	@# One thread per worker: torch would otherwise start a pool per worker and oversubscribe the cores.
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(JOBS) --maxprocesses=8

lint: .venv/dev ## check style, types and the repository's layout; change nothing
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/sp-repo-review .

format: .venv/dev ## format the code and fix what can be fixed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Files of benchmarks/: what a GPU is measured with; what ends in a few minutes on two CPU cores; and the rest.
GPU_BENCHMARKS = kernel_bandwidth step_time growth precisions
BENCHMARKS = $(GPU_BENCHMARKS) store report_page compare
LONG_BENCHMARKS = data_wait import_time small_steps advisor explain telemetry loss_scaling fallback
# `make bench-gpu GPU_OPTIONS="--device cpu --quick"` rehearses it where there is no GPU.
GPU_OPTIONS = --device cuda

# $(call run_each,python,names,options): one that fails keeps no other from running, and make fails in the end, with
# what was measured in the tables of docs/performance.md.
run_each = for name in $(2); do echo "== benchmarks/$$name.py"; \
	  PYTHONPATH=. $(1) "benchmarks/$$name.py" $(3) || failed="$$failed $$name"; done; \
	  PYTHONPATH=. $(1) benchmarks/performance_page.py || failed="$$failed performance_page"; \
	  [ -z "$$failed" ] || { echo "These failed:$$failed." >&2; exit 1; }

bench: .venv/dev ## run the benchmarks that end in minutes on a CPU, one after the other
	@failed=; $(call run_each,.venv/bin/python,$(BENCHMARKS))

bench-all: .venv/dev ## run all benchmarks on the CPU, which takes hours
	@failed=; $(call run_each,.venv/bin/python,$(BENCHMARKS) $(LONG_BENCHMARKS))

bench-gpu: ## test and measure on this machine's GPU, with the torch, lightning and triton that it has
	@"$(PYTHON)" benchmarks/helpers/devices.py $(GPU_OPTIONS)
	@failed=; if [ -d tests/gpu ] && "$(PYTHON)" -c 'import pytest' 2>/dev/null; then \
	  "$(PYTHON)" -m pytest -q -o minversion=0 -o addopts=--import-mode=importlib tests/gpu || failed=" tests/gpu"; fi; \
	$(call run_each,"$(PYTHON)",$(GPU_BENCHMARKS),$(GPU_OPTIONS))

clean: ## remove .venv and everything that was built
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
