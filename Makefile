# The project's verbs; `make help` lists them. Everything lives in .venv, at the versions of constraints.txt.
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
PYTHON ?= python3
# Processes that test at a time.
WORKERS ?= 2

.PHONY: help install quickstart test unit analysis slurm trackio lowest faults figures gpu dist installed coverage lint types format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## make .venv with the pinned dependencies

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: install  ## train, measure and fit a scaling curve in a few minutes
	$(BIN)/gsq run sweeps/configs/quickstart.yaml

test: unit slurm  ## run the tests (SLURM's are skipped, with the reason, where there is none)

# Exit code 5: ARGS selected none.
unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slurm" $(ARGS) || [ $$? -eq 5 ]

# A part of unit that CI runs beside slurm: it starts few processes and trains nothing.
analysis: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/analysis_tests

# They share one small cluster, so one after the other.
slurm: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm $(ARGS) || [ $$? -eq 5 ]

trackio: install  ## test gsq track with Trackio, beside .venv, since it needs an older Pillow (about a minute)
	$(PYTHON) -m venv .venv-trackio
	@# Everything but Trackio and its own needs comes from .venv.
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$(.venv-trackio/bin/python -c 'import site; print(site.getsitepackages()[0])')/above.pth"
	.venv-trackio/bin/python -m pip install -qq --disable-pip-version-check 'trackio==0.43.0'
	OMP_NUM_THREADS=1 .venv-trackio/bin/python -m pytest tests/sweeps_tests/test_tracking.py -k trackio

lowest: $(LOWEST)/.installed  ## test sweeps and analysis with the lowest versions that pyproject.toml allows
	@echo "lowest versions: $$($(LOWEST)/bin/python -m pip list --format=freeze --disable-pip-version-check | tr '\n' ' ')"
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(or $(ARGS),$(LOWEST_TESTS))

# Left out: what takes long and trains rather than calls libraries, what reads schemas with a library of the tests alone,
# and figures that name matplotlib's version.
LOWEST_TESTS := tests/sweeps_tests tests/analysis_tests tests/gsq_tests/test_discriminators.py \
	tests/gsq_tests/test_tokenizer.py tests/gsq_tests/test_publishing.py \
	tests/integration_tests/test_versions.py \
	$(foreach name,sweeps_tests/test_local_queue sweeps_tests/test_canary sweeps_tests/test_snapshot \
	sweeps_tests/test_own_parts sweeps_tests/test_programs sweeps_tests/test_horizons sweeps_tests/test_json_schema \
	sweeps_tests/test_starting sweeps_tests/test_tracking sweeps_tests/test_containers sweeps_tests/test_probe_interrupted \
	sweeps_tests/test_probes sweeps_tests/test_reevaluate sweeps_tests/test_workers sweeps_tests/test_own_edges \
	analysis_tests/test_readme_figures,--ignore tests/$(name).py) -k "not killed and not goes_on"

$(LOWEST)/.installed: pyproject.toml .ci/constraints-lowest.txt
	@echo "installing the lowest versions into $(LOWEST) (a minute or two)"
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install -qq --no-compile --disable-pip-version-check -c .ci/constraints-lowest.txt -e '.[dino,hub]' \
		duckdb hypothesis polars pytest pytest-timeout pytest-xdist
	@touch $@

faults: install  ## inject 300 faults into sweeps on a SLURM cluster of its own (Debian, root; up to an hour)
	OMP_NUM_THREADS=1 $(BIN)/python tests/slurm_tests/faults.py --faults 300 --seed 1

figures: install  ## the README's figures, from the committed tables
	$(BIN)/gsq plot quickstart --output results/quickstart-scaling.png
	$(BIN)/gsq plot quickstart-generation --kind tradeoff --output results/quickstart-tradeoff.png
	$(BIN)/python results/photos-scaling/figure.py
	$(BIN)/python results/tokenizer-laws/answers.py --figures

gpu: install  ## measure speed, memory and exactness on one GPU in ten minutes (tests/benchmarks/results/gpu.md)
	$(BIN)/python tests/benchmarks/gpu.py $(ARGS)

dist: install  ## wheel and sdist in dist/, checked
	$(BIN)/python tests/release.py build

installed: dist  ## install the wheel into an empty environment and work from there (two minutes)
	$(BIN)/python tests/release.py install

coverage: install  ## run the tests but SLURM's, and list the lines that none of them runs
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist loadfile -m "not slurm" $(ARGS)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

lint: install  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy
	$(BIN)/mypy

format: install  ## reformat and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches, keep results
	rm -rf $(VENV) $(LOWEST) .venv-trackio .pytest_cache .mypy_cache .ruff_cache .coverage* build dist *.egg-info
