# make bench            the papers from card to verdict, and the report's path
# make help             every target
PROFILE ?= small
SUITES  ?=
DEVICE  ?= auto
BUDGET  ?=
OUT     ?=
PYTHON  ?=
BASE    ?= origin/main
HEAD    ?= HEAD

LITMUS := .venv/bin/litmus
PY     := .venv/bin/python
SHELL  := /bin/bash

.DEFAULT_GOAL := help
.PHONY: image docker-bench bench test benchmarks lint report ab compare asv clean help readme-table venv

bench: venv  ## run the suites, print the verdicts, write the report   [PROFILE SUITES DEVICE BUDGET OUT]
	@status=0; \
	$(LITMUS) run $(SUITES) --profile $(PROFILE) --device $(DEVICE) \
	  $(if $(BUDGET),--budget $(BUDGET)) $(if $(OUT),--out $(OUT)) || status=$$?; \
	case $$status in 0|4|5) $(LITMUS) report --run $(or $(OUT),latest) || exit $$?;; esac; \
	exit $$status

test: venv  ## run the tests; speed cells are proved, not timed   [ARGS="-k card"]
	$(PY) -m pytest --benchmark-disable -n logical --maxprocesses 8 --dist loadfile $(ARGS)

benchmarks: venv  ## time every speed cell with pytest-benchmark   [PROFILE=smoke SUITES DEVICE ARGS]
	$(PY) -m pytest tests/benchmarks --benchmark-only --litmus-profile=$(if $(filter file,$(origin PROFILE)),smoke,$(PROFILE)) \
	  --litmus-device=$(DEVICE) $(SUITES:%='--litmus-select=%') $(ARGS)

lint: venv  ## ruff, mypy (strict on harness/), import contracts
	$(PY) -m ruff check .
	$(PY) -m mypy harness
	.venv/bin/lint-imports

report: venv  ## write the pages of the stored runs   [OUT]
	$(LITMUS) report $(if $(OUT),--out $(OUT))

ab: venv  ## compare two revisions in pairs on this machine   BASE=origin/main HEAD=HEAD   [SUITES BUDGET OUT=ab.md STRICT=1 ARGS]
	@status=0; \
	$(LITMUS) ab $(BASE) $(HEAD) $(SUITES) $(if $(BUDGET),--budget $(BUDGET)) --format markdown --out $(or $(OUT),ab.md) $(ARGS) || status=$$?; \
	if [ $$status = 3 ] && [ -z '$(STRICT)' ]; then echo 'litmus ab: nothing to compare; no failure (STRICT=1 makes it one)'; exit 0; fi; \
	exit $$status

compare: venv  ## hold a stored run against another   A=RUN B=RUN (default: baseline and latest) FORMAT OUT
	$(LITMUS) compare $(or $(A),baseline) $(or $(B),latest) $(if $(FORMAT),--format $(FORMAT)) $(if $(OUT),--out $(OUT))

asv: venv  ## measure HEAD with asv, add the stored runs, publish the history   [ARGS="--bench softmax"]
	$(PY) -m asv machine --yes
	$(PY) -m asv run --python=same --set-commit-hash=$$(git rev-parse HEAD) $(ARGS)
	$(LITMUS) asv-export
	$(PY) -m asv publish

image: venv  ## build the image that --engine docker runs cells in   [KIND=cpu|cuda TAG BASE]
	ci/docker/image $(or $(KIND),cpu) $(TAG)

docker-bench: venv  ## as bench, each cell in a container of that image   [PROFILE SUITES DEVICE TAG OUT]
	@status=0; \
	$(LITMUS) run $(SUITES) --profile $(PROFILE) --device $(DEVICE) --engine docker --image $(or $(TAG),litmus:cpu) \
	  $(if $(OUT),--out $(OUT)) || status=$$?; \
	case $$status in 0|4|5) $(LITMUS) report --run $(or $(OUT),latest) || exit $$?;; esac; \
	exit $$status

readme-table: venv  ## fill README's table of verdicts from results/
	$(PY) ci/readme_table.py

venv:  ## set up .venv, or bring it up to date   [PYTHON=python3.12]
	@PYTHON='$(PYTHON)' ci/venv

clean:  ## remove what can be made again: .venv, caches, report/ and out/ (never results/)
	rm -rf .venv .litmus .asv report out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks \
	  .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PROFILE=smoke|small|full  SUITES="softmax/* galore"  DEVICE=auto|cpu|cuda|cuda:0  BUDGET=10m  OUT=FOLDER'
