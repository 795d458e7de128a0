# Threat Bus. `make run` runs it, `make test` tests it; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := . $(wildcard plugins/apps/*/ plugins/backbones/*/) $(dir $(wildcard apps/*/setup.py))
SETUPS := setup.py $(wildcard plugins/*/*/setup.py apps/*/setup.py)

.DEFAULT_GOAL := help
.PHONY: help run install install-service uninstall-service test lint docs reference bench chaos soak fuzz clean debian-packages broker-module

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

run: install broker-module ## run the bus in the foreground with config.yaml.example
	@exec $(BIN)/threatbus -c config.yaml.example

install: $(VENV)/.installed ## set up .venv with the bus and all its plugins

test: debian-packages $(VENV)/.installed-dev broker-module lint ## lint, types and all tests
	$(BIN)/pytest -n 3 --dist loadfile

lint: $(VENV)/.installed-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install-service: ## install the bus as a system service (DESTDIR=…, see docs/service.md)
	@scripts/install-service "$(PYTHON)" "$(DESTDIR)"

uninstall-service: ## remove it; configuration and state stay
	@scripts/uninstall-service "$(DESTDIR)"

docs: $(VENV)/.installed-dev ## build the documentation as a site, in site/
	$(BIN)/zensical build --strict --clean

reference: $(VENV)/.installed-dev ## write the tables of keys in docs/configuration.md anew
	$(BIN)/python -m scripts.reference

bench: debian-packages $(VENV)/.installed-dev broker-module ## measure the bus beside a bare forwarder
	$(BIN)/python -m benchmarks

chaos: debian-packages $(VENV)/.installed-dev broker-module ## break things around the bus and count what is lost
	$(BIN)/python -m chaos

soak: $(VENV)/.installed-dev ## let a day of traffic pass the bus in minutes and see whether it grows
	$(BIN)/python -m chaos.uptime

fuzz: $(VENV)/.installed-dev ## feed each door bytes that it does not expect, guided by coverage
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-fuzz.txt
	$(BIN)/python -m fuzz

clean: ## remove the environment and everything generated
	rm -rf $(VENV) build dist site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +

debian-packages:
	@scripts/install-debian-packages

broker-module: $(VENV)/.created
	@scripts/link-broker $(VENV)

$(VENV)/.created:
	@scripts/make-venv $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(SETUPS) pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --use-pep517 \
		$(foreach d,$(DISTRIBUTIONS),-e $(patsubst %/,%,$(d)))
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-engine.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@# There is none for other machines than Linux on x86_64; the tests that need it say so.
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-engine.txt
	@touch $@
