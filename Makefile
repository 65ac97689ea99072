# `make play` and `make test` set up what they need, once, in .venv.

# Variables of play: WORLD a checkpoint's directory, HOST, PORT, PLAYERS; of bench: WORLD, PLAYERS (1,2,4,8).
HOST = # not from the environment, where some shells keep the machine's own name
PYTHON ?= python3
VENV := .venv
IN_VENV := $(VENV)/bin/python

CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,constraints/cpu.txt)
INSTALL := $(IN_VENV) -m pip install --disable-pip-version-check $(addprefix --constraint ,$(CONSTRAINTS))
WORLD_OPTIONS = $(if $(WORLD),--world "$(WORLD)") $(if $(PLAYERS),--players $(PLAYERS))

.PHONY: play test lint bench recording clean

play: $(VENV)/core.stamp
	@$(IN_VENV) -m gameserver serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(WORLD_OPTIONS)

test: $(VENV)/dev.stamp
	@$(IN_VENV) -m pytest --numprocesses 2 --dist loadfile $(TESTS)

lint: $(VENV)/dev.stamp
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m mypy

bench: $(VENV)/core.stamp
	@$(IN_VENV) -m gameserver bench $(WORLD_OPTIONS)

# The built-in world's recording in tests/vectors, to be made again when its weights change.
recording: $(VENV)/dev.stamp
	@$(IN_VENV) -m tests.vectors.record

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/core.stamp: pyproject.toml $(wildcard constraints/*.txt) | $(VENV)/bin/pip
	@echo 'Installing what the server needs (torch is large: some minutes).'
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@echo 'Installing what the tests need.'
	@$(INSTALL) --editable '.[dev,text]'
	@touch $@

$(VENV)/bin/pip: # the last thing that venv makes
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Manyworlds needs Python 3.11 or newer: there is none called $(PYTHON).' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo 'Manyworlds needs the venv module of Python: on Debian, install python3-venv.' >&2; exit 1; }
	@echo 'Making $(VENV).'
	@$(PYTHON) -m venv $(VENV)
