# splitmesh: what people and CI do, by name. `make` alone lists it. Needs GNU make 3.81 or later.
#
# Each kind of installation has a lock (requirements/*.lock) and a stamp in the virtual environment: nothing is installed twice, and a
# changed lock is installed again.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup tensorflow demo test check bench protos lock up down clean docker-there

PYTHON ?= python3
VENV ?= .venv
PROFILES ?= edge cloud observability
ARGS ?=
DATA ?=
QUICK ?=
UPGRADE ?=

IN_VENV := $(VENV)/bin
PIP := $(IN_VENV)/python -m pip --disable-pip-version-check
COMPOSE = docker compose $(foreach profile,$(PROFILES),--profile $(profile))
# Those of our folders that hold any Python.
TYPED = $(foreach folder,src services edge cloud examples tools benchmarks,$(if $(shell find $(folder) -name '*.py' 2>/dev/null | head -n 1),$(folder)))
BENCHMARKS = $(shell grep -ls '__main__' benchmarks/*.py)

help: ## This list
	@echo "usage: make TARGET [NAME=value ...]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | awk -F'|' '{ printf "%-10s %s\n", $$1, $$2 }'

setup: $(VENV)/.dev.installed ## Virtual environment in .venv with everything a developer needs

tensorflow: $(VENV)/.tensorflow.installed ## Into .venv: what `splitmesh models import` needs for TensorFlow models (1.3 GB)

demo: $(VENV)/.$(if $(DATA),train,run).installed ## The main job on this machine: make demo [DATA=folder of real pictures] [ARGS="--frames 200"]
	$(IN_VENV)/python -m examples.solder_joints.demo $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(VENV)/.dev.installed ## All tests, on up to four cores: make test [ARGS="-k plan --mesh=processes"]
	$(IN_VENV)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.dev.installed ## What CI checks beside the tests: lint, format, types, imports, stubs
	$(IN_VENV)/python -m ruff check .
	$(IN_VENV)/python -m ruff format --check .
	$(IN_VENV)/python -m mypy $(TYPED)
	$(IN_VENV)/lint-imports
	$(IN_VENV)/python tools/generate_stubs.py --check

bench: $(VENV)/.train.installed ## Every benchmark, one after the other: make bench [QUICK=1]
	@[[ -n "$(BENCHMARKS)" ]] || echo "there are no benchmarks here yet"
	@for file in $(BENCHMARKS); do \
		module="benchmarks.$$(basename "$$file" .py)"; \
		echo "== $$module"; \
		$(IN_VENV)/python -m "$$module" $(if $(QUICK),--quick) $(ARGS) || exit 1; \
	done

protos: $(VENV)/.dev.installed ## Make src/splitmesh/api anew from protos/
	$(IN_VENV)/python tools/generate_stubs.py

lock: $(VENV)/.made ## Write requirements/*.lock for pyproject.toml: make lock [UPGRADE=1]
	$(IN_VENV)/python tools/lock.py $(if $(UPGRADE),--upgrade)

up: docker-there ## Whole mesh in containers: make up [PROFILES="edge cloud observability"]
	OTLP_ENDPOINT="$${OTLP_ENDPOINT:-$(if $(filter observability,$(PROFILES)),jaeger:4317)}" $(COMPOSE) up --build --detach --wait
	$(COMPOSE) ps

down: docker-there ## Stop the containers; their data stays
	docker compose --profile '*' down --remove-orphans

clean: ## Remove what was built and the caches; .venv stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

docker-there:
	@command -v docker > /dev/null || { echo "make $(MAKECMDGOALS) needs docker, which is not on this machine; make demo runs the same mesh without it" >&2; exit 1; }
	@docker compose version > /dev/null 2>&1 || { echo "docker is here but its compose plugin is not: 'docker compose version' fails; install docker compose 2.20 or later" >&2; exit 1; }

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
		|| { echo "splitmesh needs Python 3.11 or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true); name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null \
		|| { echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Each lock holds the ones before it (tools/lock.py sees to it), so the stamps of those are set too; tensorflow adds to any of them.
HOLDS_tensorflow := tensorflow
HOLDS_run := run
HOLDS_train := run train
HOLDS_dev := run train dev
$(VENV)/.%.installed: requirements/%.lock pyproject.toml $(VENV)/.made
	@echo "installing $< into $(VENV); the first time this takes a few minutes"
	@$(PIP) install -qq --requirement $<
	@$(PIP) install -qq --no-deps --editable .
	@$(PIP) check
	@touch $(foreach lock,$(HOLDS_$*),$(VENV)/.$(lock).installed)
