# Needs Python 3.11 or newer with pip and venv, git and make. Everything else is installed in here, once:
# tox into .bootstrap/, and by tox the project with its pinned dependencies into .tox/shared/.

PYTHON ?= python3
ARGS ?=

bootstrap := .bootstrap
tox := $(bootstrap)/bin/tox
# A copy of what was installed: another pin or another interpreter makes a new .bootstrap/.
stamp := $(bootstrap)/tox-requirements.txt
ready := $(shell cmp -s tox-requirements.txt $(stamp) && $(tox) --version >/dev/null 2>&1 && echo yes)

.DEFAULT_GOAL := help
.PHONY: help bench test clean bootstrap

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

bench: bootstrap ## measure and gate every cell, and save the run; make bench ARGS='-k w4'
	$(tox) run -e bench $(if $(strip $(ARGS)),-- $(ARGS))

test: bootstrap ## tests, lint and types; make test ARGS='-k gates'
	$(tox) run -e test,lint,types $(if $(strip $(ARGS)),-- $(ARGS))

clean: ## remove what was installed here; saved runs and downloaded models stay
	rm -rf $(bootstrap) .tox .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
ifneq ($(ready),yes)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Bitgate needs Python 3.11 or newer. Say which one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "First run: installing tox into $(bootstrap)/"
	@$(PYTHON) -m venv --clear $(bootstrap)
	@$(bootstrap)/bin/python -m pip install --quiet --disable-pip-version-check -r tox-requirements.txt
	@cp tox-requirements.txt $(stamp)
endif
