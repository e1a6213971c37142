# The one list of commands. Each target makes its own environment in .venv on first use and brings it up to date when
# pyproject.toml changes. ARGS is handed on:  make test ARGS="-k fork"   make demo ARGS="--seconds 5"
# Another interpreter:  make clean test PYTHON=python3.13

PYTHON ?= python3
ARGS   ?=
ENV    := .venv
BIN    := $(ENV)/bin

# What `versions` tests in addition: interpreters, from PATH or pyenv, each with the newest releases of all libraries; and
# older releases of each library, the oldest supported one first. The oldest psycopg2 has a wheel for Python 3.11.
PYTHONS        := 3.10 3.11 3.12 3.13 3.14
OPENTELEMETRYS := 1.36
PSYCOPG2S      := 2.9.5
SQLALCHEMYS    := 1.4 2.0
ASYNCPGS       := 0.29 0.30
POOLS          := 3.2

# Folders of programs, which bandit looks at.
LOOKED_AT := benchmarks collector-config docs examples grafana otel_pgpool

# uv is used where it is installed; venv and pip do the same, slower.
ifneq ($(shell command -v uv 2>/dev/null),)
VENV    := uv venv --quiet --seed --clear --python "$(PYTHON)"
INSTALL := uv pip install --quiet --python $(BIN)/python
else
VENV    := "$(PYTHON)" -m venv --clear
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo shop up down stack passwords dashboard test coverage versions faults lint audit types bench fleet release-check docs clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-21s %s\n", $$1, $$2 }'

demo: $(ENV)/demo.stamp ## 15 s of a small shop's traffic on a PostgreSQL of its own, with a live view and a report
	@$(BIN)/otel-pgpool demo $(ARGS)

shop: $(ENV)/dev.stamp ## the example service under load, on a PostgreSQL of its own, until Ctrl-C
	@exec $(BIN)/python examples/shop/run.py

define NEEDS_COMPOSE
@docker compose version >/dev/null 2>&1 || { echo "make up and make down need Docker with its compose plugin, and 'docker compose version' fails here; without it, make shop runs the shop" >&2; exit 1; }
endef

# What reads the telemetry: full, a container for each program, or lgtm, one container for all, with Tempo instead of Jaeger.
STACK    ?= full
SERVICES := $(if $(filter lgtm,$(STACK)),lgtm lgtm-shop lgtm-load)
up: export COMPOSE_PROFILES := $(filter lgtm,$(STACK))
down: export COMPOSE_PROFILES := lgtm

# A search for the shop's long holds of the last hour, in Jaeger and in Tempo.
IN_JAEGER := search?service=shop&operation=pool.checkout&tags=%7B%22otel_pgpool.long_hold%22%3A%22true%22%7D&lookback=1h
IN_TEMPO  := explore?schemaVersion=1&orgId=1&panes=%7B%22a%22%3A%7B%22datasource%22%3A%22tempo%22%2C%22queries%22%3A%5B%7B%22refId%22%3A%22A%22%2C%22datasource%22%3A%7B%22type%22%3A%22tempo%22%2C%22uid%22%3A%22tempo%22%7D%2C%22queryType%22%3A%22traceql%22%2C%22query%22%3A%22%7B%20resource.service.name%20%3D%20%5C%22shop%5C%22%20%26%26%20name%20%3D%20%5C%22pool.checkout%5C%22%20%26%26%20span.otel_pgpool.long_hold%20%3D%20true%20%7D%22%7D%5D%2C%22range%22%3A%7B%22from%22%3A%22now-1h%22%2C%22to%22%3A%22now%22%7D%7D%7D

up: stack passwords ## the whole stack, with Docker: shop, Collector, Jaeger, Prometheus, Grafana; STACK=lgtm: in one container
	@docker compose up --build --detach --wait $(SERVICES)
ifeq ($(STACK),lgtm)
	@shop=$$(docker compose port lgtm-shop 8000) && grafana=$$(docker compose port lgtm 3000) && \
	prometheus=$$(docker compose port lgtm 9090) && \
	echo "The shop            http://$$shop/" && \
	echo "Long holds          http://$$grafana/$(IN_TEMPO)" && \
	echo "Dashboard           http://$$grafana/d/otel-pgpool" && \
	echo "Alerts              http://$$prometheus/alerts"
else
	@shop=$$(docker compose port shop 8000) && jaeger=$$(docker compose port jaeger 16686) && \
	prometheus=$$(docker compose port prometheus 9090) && grafana=$$(docker compose port grafana 3000) && \
	echo "The shop            http://$$shop/" && \
	echo "Long holds          http://$$jaeger/$(IN_JAEGER)" && \
	echo "Dashboard           http://$$grafana/d/otel-pgpool?var-jaeger=http://$$jaeger" && \
	echo "Alerts              http://$$prometheus/alerts"
endif

down: passwords ## end the stack, and remove what it has stored
	@docker compose down --volumes --remove-orphans

stack:
	@case "$(STACK)" in full|lgtm) ;; *) echo "STACK is '$(STACK)': full or lgtm is accepted" >&2; exit 1; esac

# Compose reads .env, for its owner alone. What stands there stays.
PASSWORDS := POSTGRES_PASSWORD SHOP_PASSWORD COLLECTOR_PASSWORD GRAFANA_PASSWORD
passwords:
	$(NEEDS_COMPOSE)
	@umask 077 && touch .env && chmod go-rwx .env && for name in $(PASSWORDS); do \
		grep -q "^$$name=." .env || printf '\n%s=%s\n' "$$name" "$$(od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n')" >>.env || exit; \
	done

dashboard: $(ENV)/dev.stamp ## write Grafana's dashboard, with links into Jaeger and into Tempo
	@$(BIN)/python -m grafana.dashboard

# Three at a time on any machine: most tests wait for a server most of their time. With worksteal the tests of a file mostly stay on one
# worker, so that the servers and programs which they share start once.
test: $(ENV)/dev.stamp $(ENV)/sqlalchemy-1.4.stamp $(ENV)/debian.stamp ## every test
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

coverage: ## every test, with branch coverage, which makes them slower
	@$(MAKE) test ARGS="--cov=otel_pgpool $(ARGS)"

OLDER := $(OPENTELEMETRYS:%=opentelemetry-%) $(PSYCOPG2S:%=psycopg2_binary-%) $(SQLALCHEMYS:%=sqlalchemy-%) \
	$(ASYNCPGS:%=asyncpg-%) $(POOLS:%=psycopg_pool-%)
versions: $(OLDER:%=older-%) $(PYTHONS:%=python-%) ## the tests of what depends on them, on other Pythons and the oldest supported libraries

# The tests for each library: those of its adapter, or those of the files that use most of it.
INSTRUMENTATION := tests/integration/instrumentation
TESTS_opentelemetry = tests/unit $(wildcard $(INSTRUMENTATION)/test_[fiw]*.py $(INSTRUMENTATION)/test_sqlalchemy.py \
	tests/integration/test_*span*.py tests/integration/test_events*.py tests/integration/test_metrics.py \
	tests/integration/test_logs.py tests/integration/test_*sdk*.py)
TESTS_psycopg2_binary = $(wildcard $(INSTRUMENTATION)/test_psycopg2*.py tests/integration/test_block.py \
	tests/integration/test_drop_in.py tests/integration/test_li*.py tests/integration/test_out*.py \
	tests/integration/test_re*.py tests/integration/test_session_names.py tests/integration/test_time_limits.py)
tests_of = $(shell find tests -name "test_$(1)*.py" -o -path "*/$(1)_adapter/test_*.py")
TESTS_sqlalchemy = $(call tests_of,sqlalchemy)
TESTS_asyncpg = $(call tests_of,asyncpg)
TESTS_psycopg_pool = $(call tests_of,psycopg_pool)

.PHONY: $(OLDER:%=older-%) $(PYTHONS:%=python-%)
$(OLDER:%=older-%): older-%: $(ENV)/%.stamp $(ENV)/dev.stamp
	@echo "$*, on `$(BIN)/python --version`"
	@PYTHONPATH=$(ENV)/$* $(BIN)/python -m pytest -n 2 -q $(TESTS_$(firstword $(subst -, ,$*))) $(ARGS)

$(PYTHONS:%=python-%): python-%: $(ENV)/dev.stamp
	@own=$$($(BIN)/python -c "import sys; print('%d.%d' % sys.version_info[:2])"); \
	python=$$(for each in python$* "$$HOME"/.pyenv/versions/$*.*/bin/python; do \
		"$$each" -c "" 2>/dev/null && echo "$$each" && break; done); \
	if [ "$$own" = $* ]; then echo "Python $* is that of make test"; \
	elif [ -z "$$python" ]; then echo "Python $* is not installed here: its tests are left out"; \
	else echo "Python $*" && $(MAKE) --no-print-directory test ENV=.venv-$* PYTHON="$$python" \
		ARGS="-q --no-cov $(INSTRUMENTATION) tests/unit $(ARGS)"; fi

lint: $(ENV)/dev.stamp ## ruff: rules and format; the order of imports; bandit, on all but the tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache >$(ENV)/imports.txt || { cat $(ENV)/imports.txt; exit 1; }
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(LOOKED_AT)

audit: $(ENV)/dev.stamp ## pip-audit: known vulnerabilities of the installed packages
	@$(BIN)/pip-audit --skip-editable

types: $(ENV)/dev.stamp ## mypy, strict
	@$(BIN)/mypy

bench: $(ENV)/dev.stamp ## compare with other pools; writes benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks $(ARGS)

faults: $(ENV)/dev.stamp ## the fault-injection suite, and all orders of two threads; writes docs/reliability.md and docs/orders.md
	@$(BIN)/python -m tests.chaos $(ARGS)
ifeq ($(strip $(ARGS)),)
	@$(BIN)/python -m tests.interleaving --write docs/orders.md
endif

fleet: $(ENV)/dev.stamp $(ENV)/debian.stamp ## 150 worker processes behind PgBouncer, through restarts and outages; writes docs/fleet.md
	@$(BIN)/python -m tests.fleet $(ARGS)

release-check: $(ENV)/dev.stamp ## build sdist and wheel into dist/, check them, and try each in an empty environment
	@$(BIN)/python -m tests.release

docs: $(ENV)/docs.stamp ## the documentation as a site, in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(ENV)/docs/bin/mkdocs build --strict

clean: ## remove the environment, builds and caches
	@rm -rf .venv .venv-* build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache otel-pgpool-demo
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo alone needs neither the test tools nor the peers, so it installs less. dev holds all of demo.
$(ENV)/demo.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing what the demo needs into $(ENV) ..."
	@$(INSTALL) -e ".[demo]"
	@touch $@

$(ENV)/dev.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing the development tools into $(ENV) (a minute or two the first time) ..."
	@$(INSTALL) -e ".[dev]"
	@touch $(ENV)/demo.stamp $@

# The site's tools have an environment of their own: the tests need none of them.
$(ENV)/docs.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing the site's tools into $(ENV)/docs ..."
	@$(BIN)/python -m venv --clear $(ENV)/docs
	@$(ENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

PACKAGES_opentelemetry-1.36 := "opentelemetry-api==1.36.*" "opentelemetry-sdk==1.36.*" "importlib_metadata<8.8" zipp \
	$(patsubst %,opentelemetry-%==0.57b0,semantic-conventions instrumentation instrumentation-dbapi instrumentation-psycopg2)

# An older release of a library, in a folder to put in front of the one of dev.
$(OLDER:%=$(ENV)/%.stamp): $(ENV)/%.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing $* into $(ENV)/$* ..."
	@rm -rf $(ENV)/$*
	@$(INSTALL) --no-deps --target $(ENV)/$* $(or $(PACKAGES_$*),"$(subst -,==,$*).*")
	@touch $@

# Programs that some tests need. Where they cannot be had it is tried again the next time.
$(ENV)/debian.stamp: tests/stack/unpack-debian.sh | $(BIN)/python
	@if tests/stack/unpack-debian.sh $(ENV)/debian; then touch $@; fi

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found: install Python 3.10 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1): Python 3.10 or later is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(ENV) with $$("$(PYTHON)" --version 2>&1) ..."
	@$(VENV) $(ENV)
