# Needs a C++ compiler and Python 3.11 or newer; everything else is fetched through the configured Python index.
# What is downloaded and compiled lies in the user's cache folder (HOTTUNE_CACHE), so it is done once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
MATRIX ?= cpu
# Shows on any machine that the benchmark works, on the virtual GPU; its numbers mean nothing.
SMOKE_RUN := demo --backend cpu --ceilings 25,50 --ubatches 64 --scale 0.05 --threads 1 --out build/bench-device.json

.DEFAULT_GOAL := help
.PHONY: bench-report bench-search help setup demo test lint device-unit device-sanitize test-device bench bench-device bench-durability \
  bench-verdicts clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 20

setup: $(STAMP) ## make .venv with hottune and the developer tools in it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hottune needs Python 3.11 or newer; $(PYTHON) is older or missing."; \
	  echo "Name another one: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@echo "== setting up $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup ## the whole tool on a small model that comes with it (first time: builds llama.cpp)
	$(BIN)/hottune run demo $(ARGS)
	@echo "== what the demo's router chooses, and how well a cache of a quarter of the experts does"
	$(BIN)/hottune trace demo --tokens 1200 --hot-k 32 --policy lfru --out reports/demo.hottrace

test: lint device-unit device-sanitize ## lint, build the engine, then all tests
	@echo "== tests"
	HOTTUNE_REQUIRE_ENGINE=1 $(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff and mypy
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

device-unit: setup ## build the engine, then the device's own C++ tests, with the short matrix
	@echo "== engine build (the first takes minutes, later ones none) and the device's C++ tests"
	$(BIN)/hottune build --device-tests

device-sanitize: setup ## the same tests under AddressSanitizer with UBSan, and under ThreadSanitizer
	@echo "== the device's C++ tests under AddressSanitizer and UBSan"
	$(BIN)/hottune build --device-tests --sanitize address,undefined
	@echo "== the device's C++ tests under ThreadSanitizer"
	$(BIN)/hottune build --device-tests --sanitize thread

test-device: setup ## the matrix: every architecture x every type (MATRIX=gpu: with the cache on the real GPU)
	@echo "== the device against llama.cpp's CPU path: architectures x types"
	$(BIN)/hottune build --device-matrix $(MATRIX)

bench: setup ## the project's own benchmarks (bench/*.py)
	@set -e; found=; for file in bench/*.py; do \
	  [ -e "$$file" ] || continue; found=1; echo "== $$file"; $(BIN)/python "$$file"; done; \
	[ -n "$$found" ] || echo "There are no benchmarks in bench/ yet."

bench-device: setup ## the device against static placements (MODEL=..., SMOKE=1, ARGS="--help" for the rest)
	@echo "== the device's benchmark"
	$(BIN)/python -m bench.device $(if $(SMOKE),$(SMOKE_RUN),$(or $(MODEL),30b-a3b)) $(ARGS)

bench-search: setup ## the search against other ways to search (ARGS="--seeds 5 --out FILE.json")
	@echo "== how well and how fast the search finds the best placement"
	$(BIN)/python -m bench.search $(ARGS)

bench-durability: setup ## kill studies 200 times with kill -9 and compare (ARGS="--real --kills 40": with real servers)
	@echo "== kill -9"
	$(BIN)/python -m bench.durability $(ARGS)

bench-verdicts: setup ## equal arms told apart, a gain of 5 % found? (minutes; ARGS="--real demo": real servers)
	@echo "== controls of the verdicts"
	$(BIN)/python -m bench.verdicts $(ARGS)

bench-report: setup ## `hottune report` on a study of 2,000 trials, every format, and a browser opening the page
	@echo "== report speed"
	$(BIN)/python -m bench.report_speed $(ARGS)

clean: ## remove .venv and local build output; the cache folder stays
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find hottune tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Downloads and engine builds stay in the cache folder; 'hottune doctor' says where it is."
