# Every target installs what it needs, once. `make PY=/path/to/python3.11` names the Python to use.
SHELL := bash
STAMP := .venv/.ok
JOBS ?= 2
FORMATS ?= pdf,svg
ARTICLES ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup reproduce update test lint types suite lab sync figures bench site

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## create .venv and install everything, pinned

reproduce: $(STAMP) ## recompute everything and say, claim by claim, whether it reproduced
	@foredraft reproduce $(ARTICLES)

update: $(STAMP) ## recompute only what is not up to date: seconds when nothing changed
	@dvc repro

test: lint ## lint, check types, run the test suite
	@$(MAKE) --no-print-directory -j 2 types suite  # side by side: checking types keeps one core busy

lint: $(STAMP) ## ruff: rules and formatting
	@ruff check
	@ruff format --check

types: $(STAMP)
	@basedpyright

suite: $(STAMP)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 pytest --numprocesses $(JOBS) --dist loadfile

lab: $(STAMP) ## open the notebooks in JupyterLab
	@jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks

sync: $(STAMP) ## write each notebook's .ipynb twin and docs/tree.md
	@foredraft sync

figures: $(STAMP) ## draw the figures again below build/figures, FORMATS=pdf,svg or png
	@foredraft figures $(ARTICLES) --formats $(FORMATS)

bench: $(STAMP) ## measure this machine: every benchmark briefly; ratios, kept in build/bench.json
	@foredraft bench --out build/bench.json

site: $(STAMP) ## build the pages in build/site/html, which open without a server or network
	@rm -rf build/site && mkdir -p build/site/pages
	@sphinx-build -q -W --keep-going -j $(JOBS) -c site -d build/site/doctrees build/site/pages build/site/html
	@echo "✓ build/site/html/index.html"

# An environment whose folder was moved is made anew: its scripts know the old place.
ifneq ($(shell cat $(STAMP) 2> /dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): environment.yml requirements.lock pyproject.toml .ci/weights.txt
	@PY="$(PY)" .ci/setup
