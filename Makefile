# Set-up and the everyday commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo demo-swap studio test test-slow test-all wheel readme check bench bench-train board gpu evidence evidence-noise evidence-likelihood evidence-latent evidence-faults evidence-features docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Ornstein needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# CLIP's byte-pair encoding is a file of this wheel, whose dependencies are not needed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps open_clip_torch
	@touch $@

demo: setup
	$(BIN)/ornstein demo $(ARGS)

demo-swap: setup
	$(BIN)/ornstein faces demo $(ARGS)

# It shows the models that `make demo` and `make demo-swap` have made.
studio: setup
	$(BIN)/ornstein studio --open $(ARGS)

# The quick tests; the slow ones (compilation, several processes, kills, whole tutorials); and all of them.
# One thread a worker: two workers of two threads each would fight for two cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope

test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

test-all: setup
	$(PYTEST) $(ARGS)

# Slow measurements whose results stand in docs/; each can be stopped and continued.
evidence: evidence-noise evidence-likelihood evidence-latent evidence-faults evidence-features

evidence-noise: setup
	$(BIN)/python evidence/structured_noise.py --out runs/evidence-noise
	$(BIN)/python evidence/structured_noise.py --out runs/evidence-noise --report docs/structured-noise-cells.md

# With CIFAR=train.zip, the CIFAR-10 training images as a zip of pictures, it trains on these too.
evidence-likelihood: setup
	$(BIN)/python evidence/likelihood.py
	$(BIN)/python evidence/trained_likelihood.py --out runs/evidence-likelihood
	$(if $(CIFAR),$(BIN)/python evidence/trained_likelihood.py --out runs/evidence-likelihood --cifar $(CIFAR))

# With FACES=photos.zip, photographs as a zip or folder of pictures, it goes beyond digits.
evidence-latent: setup
	$(BIN)/python evidence/latent.py $(if $(FACES),--faces $(FACES))

evidence-faults: setup
	$(BIN)/python evidence/faults.py -n 100

evidence-features: setup
	$(BIN)/pytest -s -m slow tests/evaluation/test_features.py

# Ratios against peers measured in the same process, written into docs/benchmarks.md. With RUN=runs/photos, a run whose
# data is at hand, on that model too; with azula installed (pip install --no-deps azula einops), beside it too.
bench: setup
	$(BIN)/python benchmarks/page.py $(if $(RUN),--model $(RUN)) $(ARGS)

# Quality at equal time beside diffusers' recipe: the digits, and with CIFAR=train.zip the CIFAR-10 training images.
bench-train: setup
	$(BIN)/python benchmarks/training.py $(ARGS)
	$(if $(CIFAR),$(BIN)/python benchmarks/training.py --data $(CIFAR) --size 32 --minutes 10 $(ARGS))
	$(if $(CIFAR),$(BIN)/python benchmarks/training.py --data $(CIFAR) --size 32 --minutes 40 --seeds 1 $(ARGS))

# The wheel, installed into an empty environment, runs the demo; the README's blocks, run on small data.
wheel:
	PYTHON=$(PYTHON) bash .ci/wheel

readme: setup
	$(BIN)/python .ci/readme.py

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

# Into site/, readable from disk. A broken link or anchor, or a page missing from the navigation, ends the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Ours and four peers at equal wall-clock time on CIFAR=train.zip, the CIFAR-10 training images: 10 and 40 minutes of
# half of the cores each. Two of the peers are found if installed:
# pip install --no-deps azula einops denoising-diffusion-pytorch ema-pytorch
board: setup
	@test -n "$(CIFAR)" || { echo "give CIFAR=train.zip, the CIFAR-10 training images as a zip of pictures"; exit 2; }
	$(BIN)/python benchmarks/board.py --data $(CIFAR) --size 32 --minutes 10 $(ARGS)
	$(BIN)/python benchmarks/board.py --data $(CIFAR) --size 32 --minutes 40 $(ARGS)

# On a machine with a GPU: the quick tests, training, sampling, memory, and with CIFAR=train.zip a training of 20 minutes;
# the tables go into docs/gpu.md. It can be stopped and continued.
gpu: setup
	$(BIN)/python benchmarks/gpu.py --write docs/gpu.md $(if $(CIFAR),--data $(CIFAR)) $(ARGS)

clean:
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .hypothesis
