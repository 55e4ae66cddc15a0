# `make train` and `make test` need make and Python 3.12 or 3.13, nothing else.
# The newest one found is used; name another with `make PYTHON=/path/to/python`.
PYTHONS ?= 3.13 3.12
PYTHON ?= $(firstword $(foreach version,$(PYTHONS),\
  $(foreach python,python$(version) \
    $(wildcard $(HOME)/.pyenv/versions/$(version).*/bin/python),\
    $(shell $(python) -c 'import ensurepip, venv' 2>/dev/null && \
      echo $(python)))))
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: train demo test test-all ci lint bench reliability weights conversion \
  step growth start serve pipeline table2 tpu plan ablations discriminator docs clean

train: $(VENV)/run
	$(BIN)/python -m mae_jax.main --config=digits \
	  --workdir=runs/digits

# Three on two cores, since some tests wait for others. Each module runs in one
# process, so that its fixtures are made once; in the order of the folders, since
# the modules with the fewest tests, which would come last, take the longest.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

# On a page, with the network of `make train`.
demo: $(VENV)/run
	test -d runs/digits/checkpoints || $(MAKE) train
	$(BIN)/python -m mae_jax demo --checkpoint=runs/digits

# Lint, types and the fast tests: eight minutes on two cores.
test: $(VENV)/test lint
	$(PYTEST) -m "not slow"

# Everything: about half an hour on two cores.
test-all: $(VENV)/test lint
	$(PYTEST)

# Everything on 3.12; `make train` and the fast tests on 3.13 too.
ci:
	$(MAKE) PYTHONS=3.12 test-all
	$(MAKE) PYTHONS=3.13 VENV=.venv-3.13 train
	$(MAKE) PYTHONS=3.13 VENV=.venv-3.13 test

# Web pages in docs/_build/html: notebooks run, and each warning is an error.
docs: $(VENV)/test
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh launch/*.sbatch

# All of it takes hours, on a machine that does nothing else.
# `pipeline` reads what `plan` has written.
bench: step growth plan pipeline start serve table2 tpu ablations discriminator weights \
  conversion reliability

reliability: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.reliability

conversion: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.conversion

pipeline: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.pipeline

serve: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.serve

start: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.start

step: $(VENV)/test
	$(BIN)/python -m bench.step

growth: $(VENV)/test
	$(BIN)/python -m bench.growth

WHOLE := discriminator=patch discriminator=image loss_on=all target=norm_pix \
  masked_input=mask_tokens contrast=image

ablations: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.ablations --length="600 steps"
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.ablations \
	  --out=bench/results/ablations_whole.md $(WHOLE)

discriminator: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.ablations --data=photos \
	  --seeds=1 --second="1000 steps" --out=bench/results/discriminator.md trainable=decoder \
	  trainable=decoder,discriminator=patch,weight=0.01 \
	  trainable=decoder,discriminator=patch,weight=0.03 \
	  trainable=decoder,discriminator=patch

weights: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.weights

# With the CUDA compiler, some 6 GB.
plan: $(VENV)/run
	$(PIP) --constraint constraints.txt --editable ".[train,tpu,cuda13]"
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.plan

# With the TPU compiler, which the tests need too.
table2: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.table2

tpu: $(VENV)/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.tpu

$(VENV)/python:
	@test -n "$(PYTHON)" || { echo "Python $(PYTHONS) is needed, with venv;" \
	  "name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "using $$($(PYTHON) --version) ($(PYTHON)) in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/run: $(VENV)/python setup.py constraints.txt
	$(PIP) --constraint constraints.txt --editable ".[train,viz]"
	touch $@

# Imported beside TensorFlow and jaxlib, the triton of PyTorch's CUDA build ends
# the process with a segmentation fault. The tests need no GPU.
$(VENV)/test: $(VENV)/python setup.py constraints.txt
	$(PIP) --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip uninstall --quiet --yes triton
	touch $@ $(VENV)/run

clean:
	rm -rf .venv .venv-3.13 runs docs/_build
