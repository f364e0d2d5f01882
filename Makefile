# make demo [SERVE=0] [PORT=7860] [BASE=hub id or local checkpoint]    from nothing to the A/B page
# make test                                                          every check and test
# make check                                                         the same without the tests

PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
PORT ?= 7860
SERVE ?= 1
BASE ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check format clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/python -m demo tour --serve $(SERVE) --port $(PORT) $(if $(BASE),--base "$(BASE)")

# Two processes and more; a file's tests stay together, for the sake of what they share.
test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Milvus Lite brings faiss-cpu, which must not lie over faiss-gpu. Where it is not installed its tests are skipped.
MILVUS := $(if $(findstring gpu,$(REQUIREMENTS)),,requirements-milvus.txt)

# The mark is written last: an install that was killed is simply repeated.
$(VENV)/.installed: $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; pass PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-milvus.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(if $(MILVUS),$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(MILVUS) || echo "no Milvus Lite here; its tests will be skipped")
	touch $@

clean:
	rm -rf $(VENV) runs/demo
