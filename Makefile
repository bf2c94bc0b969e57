# Everything a stranger needs: `make demo` and `make test` on a machine with Python 3.11 to 3.13, make and git.
PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
READY := .venv/.ready
STUDY ?= config/demo.yaml
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_PYTHON := $(PYTHON)
export UV_PYTHON_DOWNLOADS := never
# Images of Python often forbid it; without compiled files each of some fifty processes compiles 900 modules again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test cluster soak bench evidence lint docs gallery format schemas envs faults clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

setup: $(READY)  ## create .venv with the locked packages

$(READY): pyproject.toml uv.lock | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "error: Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make setup PYTHON=python3.13")'
	$(UV) sync --locked --quiet --extra workflow
	@touch $@

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv==0.13.9

demo: $(READY)  ## regenerate the demo study: the paper's defenses, AutoAttack, tables, figures, report
	snakemake --quiet rules --configfile config/demo.yaml
	@echo; cat results/demo/tables/digits.md; echo
	@echo "Report:  results/demo/report.html"
	@echo "Tables:  results/demo/tables   Figures: results/demo/figures   Runs: results/demo/runs"

test: $(READY)  ## run the tests
	python -m pytest --ignore tests/slurm --ignore tests/conda

cluster: $(READY)  ## the tests on a private SLURM (skipped where it is not installed) and of conda environments
	python -m pytest tests/slurm tests/conda

soak: $(READY)  ## kill training and evaluation 100 times, at random; about 10 minutes
	python -m pytest -m slow tests/workflow
	python tests/soak.py

bench: $(READY)  ## time training steps against their floors and torchattacks, and what a curriculum saves; 30 minutes
	$(UV) run --no-sync --with torchattacks==3.5.1 python benchmarks/steps.py
	python benchmarks/layers.py
	python benchmarks/curriculum.py --threads 1
	python benchmarks/precision.py

evidence: $(READY)  ## regenerate the studies of docs/evidence and what stands there; days, and it continues
	snakemake --quiet rules --configfile config/demo-evidence.yaml
	snakemake --quiet rules --configfile config/mnist-small.yaml
	test ! -d data/cifar10-images || snakemake --quiet rules --configfile config/cifar10-small.yaml
	python docs/evidence/refresh.py

lint: $(READY)  ## check style, formatting, types, the order of the wings, and the workflow
	ruff check .
	ruff format --check .
	lint-imports
	mypy
	snakefmt --check workflow
	snakemake --lint

docs: $(READY)  ## build the site, docs/_build/html; a warning is an error
	$(UV) sync --locked --quiet --inexact --extra workflow --group docs
	python -m sphinx -W --keep-going -n -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

gallery: $(READY)  ## draw the pictures of docs/gallery.md from the demo
	snakemake --quiet rules --configfile config/demo.yaml
	snakemake --quiet rules --configfile docs/gallery/gallery.yaml
	python docs/gallery/refresh.py

format: $(READY)  ## apply the formatters
	ruff check --fix .
	ruff format .
	snakefmt workflow

schemas: $(READY)  ## write workflow/schemas and docs/settings.md from sat_core/study
	python workflow/schemas/refresh.py

envs: $(READY)  ## write envs/sat-core.yaml from uv.lock
	python envs/refresh.py

faults: $(READY)  ## kill, cancel, preempt and starve jobs on a private SLURM (needs root and slurm-wlm); rehearse the paper; 85 minutes
	python -m pytest -m slow tests/slurm

clean:  ## remove the environment, not the results
	rm -rf .venv .tools
