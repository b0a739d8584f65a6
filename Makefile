# Every target does its own set-up, into .venv/, and is quick the second time.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
SECONDS ?= 60
# Tests that wait for real processes are most of the time: three at once keep two cores busy.
WORKERS ?= 3
TESTS ?= tests
# One cluster is for one process, so its tests come after the others.
OTHER_TESTS = $(filter-out tests/cluster%,$(TESTS))
CLUSTER_TESTS = $(if $(filter tests,$(TESTS)),tests/cluster,$(filter tests/cluster%,$(TESTS)))
BED := PYTHONPATH=tests $(PYTHON) -m cluster.bed
SOURCES := pyproject.toml requirements.lock .ci/locked.py $(wildcard decoder/*.cpp decoder/*.hpp decoder/CMakeLists.txt)

.PHONY: help setup run test test-paused check format bench bench-check soak-feeds faults faults-check fuzz model crds modules lock image cluster cluster-down krew dist clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.run-ready: $(SOURCES)
	@PYTHON="$(PYTHON)" bash .ci/environment local $@

.venv/.dev-ready: $(SOURCES)
	@PYTHON="$(PYTHON)" bash .ci/environment dev $@ .venv/.run-ready

setup: .venv/.dev-ready ## everything for development, into .venv/

run: .venv/.run-ready ## the whole pipeline on this machine; flags with ARGS="…"
	@exec $(BIN)/sheetanchor local $(ARGS)

test: check ## all tests that this machine can host; some of them with TESTS="…"
	@bash .ci/hosts
	@$(BED) tools || [ $$? = 2 ]
	$(if $(OTHER_TESTS),$(BIN)/python -m pytest $(OTHER_TESTS) --ignore=tests/cluster -m "not performance and not quiet_machine" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS))
	$(if $(CLUSTER_TESTS),@if $(BED) hosts; then $(BED) prepare && $(BIN)/python -m pytest $(CLUSTER_TESTS) -m "not performance" $(ARGS); fi)

test-paused: .venv/.dev-ready ## tests while their own process is stopped now and then, which fails those that depend on speed; SEED=…
	@cd tests && ../$(BIN)/python -m support.pauses --seed $(or $(SEED),0) $(patsubst tests%,.%,$(OTHER_TESTS)) --ignore=cluster -m "not performance and not quiet_machine" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.dev-ready ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=.ci $(BIN)/lint-imports

format: .venv/.dev-ready ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev-ready ## measure; prints the tables of docs/performance.md
	@set -e; for script in $(filter-out %/bench_check.py,$(wildcard tests/performance/bench_*.py)); do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

bench-check: .venv/.dev-ready ## compare the speed of the hot path with its budgets, as ratios; fails if one is exceeded
	@$(BIN)/python tests/performance/bench_check.py $(ARGS)

soak-feeds: .venv/.dev-ready ## COUNT random feeds (default 10000) from SEED on, and an hour of the recorded market, against the exchange's own state
	cd tests && ../$(BIN)/python -m support.soak_feeds --count $(or $(COUNT),10000) --seed $(or $(SEED),0) $(ARGS)

faults: .venv/.dev-ready ## scenarios of failure on a pipeline of this machine; one of them, several times with ARGS="--only NAME --runs N"
	@cd tests && ../$(BIN)/python -m faults $(ARGS)

faults-check: .venv/.dev-ready ## the scenarios that have to keep every invariant, and a control that has to break one, on a machine with nothing else running
	@$(BIN)/python -m pytest tests/integration/faults -m quiet_machine $(ARGS)

fuzz: ## fuzz the decoder for SECONDS (default 60)
	@bash decoder/fuzz.sh $(SECONDS)

model: .venv/.dev-ready ## train the model that ships, from the recording that ships
	$(BIN)/sheetanchor train --out workloads/sheetanchor/models $(ARGS)

crds: .venv/.dev-ready ## generate the CRDs from the operator's models, and the chart's copies of them and of its values
	$(BIN)/python -m sheetanchor_operator.api.schema crds
	cp crds/*.yaml charts/sheetanchor/files/crds/
	cp charts/sheetanchor/values.yaml charts/sheetanchor/files/values.yaml

modules: ## write docs/modules.md, every module in one line
	@$(PYTHON) tests/support/module_map.py > docs/modules.md

lock: ## write requirements.lock again after a change of pyproject.toml; UPGRADE=1 or UPGRADE="NAME…" for newer versions
	@PYTHON="$(PYTHON)" UPGRADE="$(UPGRADE)" bash .ci/lock

image: .venv/.run-ready ## build the image IMAGE (default localhost/sheetanchor:dev), without network while it is built; REFRESH=1 for a new base
	@REFRESH="$(REFRESH)" bash workloads/image.sh $(IMAGE)

cluster: .venv/.run-ready ## a cluster of four nodes with operator and sample, left running; in under a minute the second time
	@$(BED) sample

cluster-down: ## remove that cluster and every trace of it
	@$(BED) down

krew: .venv/.dev-ready ## archive and manifest of kubectl reanchor for krew, into build/krew/; published at URI="…"
	@$(BIN)/python operator/krew/build.py build/krew $(URI)

dist: .venv/.dev-ready ## wheels, sdist, chart, krew archive and image of one version, into build/dist/; without the image with IMAGE=none
	@IMAGE="$(if $(filter $(origin IMAGE),undefined),,$(IMAGE))" bash .ci/dist

clean: ## remove everything that the other targets made
	@[ ! -e build/cluster ] || $(BED) down
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
