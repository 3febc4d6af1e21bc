# `make` alone lists what there is. Everything below runs in .venv, which the first target that needs it makes.

PYTHON ?=
DATA ?=
WORKLOAD ?= wav2vec2
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help install install-envoy install-director demo test test-fast test-all check docs bench clean moved

help: ## list the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv once, with Python 3.10-3.12 (or PYTHON=...)

# An environment that was copied or moved with its folder still points to the old one: make it anew.
ifneq ($(shell cat .venv/.folder 2>/dev/null),$(CURDIR))
.venv/.installed: moved
endif

.venv/.installed: pyproject.toml
	@PYTHON="$(PYTHON)" bash scripts/install.sh

install-envoy: ## make .venv with what an envoy needs, and no more: no Jupyter, no Ray, no tools
	@PYTHON="$(PYTHON)" bash scripts/install.sh envoy

install-director: ## make .venv with what a director or an envoy needs, and no more
	@PYTHON="$(PYTHON)" bash scripts/install.sh envoy director

demo: install ## federate keyword spotting, or WORKLOAD=whisper, fsd50k, librifsd50k, librispeech, recognition, own_data, over one director and three envoys (DATA=a real corpus; SECURE=1 hides updates from the director; PRIVACY=record trains with differential privacy; KEEP=1 leaves them running, STOP=1 ends them)
	@$(RUN) -m openfl_audio.cli demo --workload $(WORKLOAD) $(if $(DATA),--data "$(DATA)") $(if $(SECURE),--secure) $(if $(PRIVACY),--privacy $(PRIVACY)) $(if $(KEEP),--keep) $(if $(STOP),--stop)

# Many tests wait for processes: one file a core at a time, in the order of the folders, as the long ones are in the middle.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: install ## run the tests that start no process and train nothing for long, and the examples in docstrings
	@$(PYTEST) -m "not (integration or process or training or slow)" --doctest-modules \
		tests/unit openfl_audio shard_descriptors workspaces

test: install ## run the tests, save the slow ones
	@$(PYTEST) -m "not slow" --durations 20

test-all: install ## run all tests, those that take minutes as well, and print their coverage, which has a floor
	@$(PYTEST) --cov --cov-report=

check: install ## lint, format, types, notebooks, documentation: only looks, changes nothing
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@.venv/bin/lint-imports
	@$(RUN) scripts/check_notebooks.py
	@$(MAKE) --no-print-directory docs

docs: install ## build the documentation in build/docs, from the pages in docs/ and from the code; a warning is an error
	@$(RUN) -m sphinx -c docs -E -q -W --keep-going . build/docs
	@echo "build/docs/docs/index.html"

bench: install ## what a round costs, for three sizes of model
	@set -e; for workload in many head base; do echo "== $$workload"; $(RUN) benchmarks/rounds.py --workload $$workload; done

clean: ## remove caches and runs/, keep .venv and certificates/
	@echo "Removing runs/, the caches of pytest, mypy and ruff, and __pycache__ (.venv and certificates/ stay)"
	@rm -rf runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name .venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
