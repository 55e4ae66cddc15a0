# `make train` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: train demo test test-fast lint bench reliability weights conversion step \
  growth start pipeline table2 tpu plan ablations discriminator clean

train: .venv/run
	$(BIN)/python -m mae_jax.main --config=configs/digits.py \
	  --workdir=runs/digits

# Two at a time, each module in one process: its fixtures are made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope

# On a page, with the network of `make train`.
demo: .venv/run
	test -d runs/digits/checkpoints || $(MAKE) train
	$(BIN)/python -m mae_jax demo --checkpoint=runs/digits

test: .venv/test lint
	$(PYTEST)

test-fast: .venv/test
	$(PYTEST) -m "not slow"

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh launch/*.sbatch

# All of it takes hours, on a machine that does nothing else.
# `pipeline` reads what `plan` has written.
bench: step growth plan pipeline start table2 tpu ablations discriminator weights \
  conversion reliability

reliability: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.reliability

conversion: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.conversion

pipeline: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.pipeline

start: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.start

step: .venv/test
	$(BIN)/python -m bench.step

growth: .venv/test
	$(BIN)/python -m bench.growth

WHOLE := discriminator=patch discriminator=image loss_on=all target=norm_pix \
  masked_input=mask_tokens contrast=image

ablations: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.ablations --length="600 steps"
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.ablations \
	  --out=bench/results/ablations_whole.md $(WHOLE)

discriminator: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.ablations --data=photos \
	  --seeds=1 --second="1000 steps" --out=bench/results/discriminator.md trainable=decoder \
	  trainable=decoder,discriminator=patch,weight=0.01 \
	  trainable=decoder,discriminator=patch,weight=0.03 \
	  trainable=decoder,discriminator=patch

weights: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.weights

# With the CUDA compiler, some 6 GB.
plan: .venv/run
	$(PIP) --constraint constraints.txt --editable ".[tpu,cuda12]"
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.plan

# With the TPU compiler, which the tests need too.
table2: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.table2

tpu: .venv/test
	JAX_PLATFORMS=cpu $(BIN)/python -m bench.tpu

.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/run: .venv/python setup.py constraints.txt
	$(PIP) --constraint constraints.txt --editable .
	touch $@

.venv/test: .venv/python setup.py constraints.txt
	$(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@ .venv/run

clean:
	rm -rf .venv runs
