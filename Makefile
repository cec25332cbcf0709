# Every target sets itself up: it needs only Python 3.10 or newer, pip, and a package index.
PYTHON ?= python3
VENV := .venv
COMMANDS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(COMMANDS)
STAMP := $(VENV)/.locked
DOCS_VENV := .venv-docs

.PHONY: setup quickstart test test-fast lint docs wheel-check smoke bench clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed, this is ' + sys.version + '; set PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	@echo "Fetching what requirements.lock pins: on Linux about 5 GB, most of it PyTorch's libraries for CUDA."
	@echo "INSTALL.md says how to take the small build for CPUs instead."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

# Trains a small LBVQ on synthetic videos on the CPU and evaluates it; everything goes to ./quickstart.
# Its backbone starts from ImageNet (PRETRAINED=0: from scratch, which takes longer; in ./quickstart_from_scratch).
PRETRAINED ?= 1
quickstart: setup
	$(BIN)/python tools/quickstart.py $(if $(filter 0,$(PRETRAINED)),--from-scratch --folder quickstart_from_scratch)

test: setup lint
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Builds the pages in ./site; they are read without a network. They need an environment of their own, without PyTorch.
docs: $(DOCS_VENV)/.locked
	NO_MKDOCS_2_WARNING=1 PYTHONPATH= $(DOCS_VENV)/$(COMMANDS)/python -m mkdocs build --strict --quiet

$(DOCS_VENV)/.locked: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/$(COMMANDS)/python -m pip install --quiet --require-hashes -r requirements-docs.lock
	touch $(DOCS_VENV)/.locked

# Builds the wheel, installs it outside of this folder, and trains, predicts and scores there. The dependencies are those
# of $(VENV); FULL=1 installs them, too.
wheel-check: setup
	$(BIN)/python tools/wheel_check.py $(if $(FULL),--with-dependencies)

# Two steps of training and an evaluation on a device: DEVICE=cuda, or DEVICE=mps; in ./smoke.
DEVICE ?= cpu
smoke: setup
	$(BIN)/python datasets/make_synthetic.py --root smoke --num-train 12 --num-val 1
	DETECTRON2_DATASETS=smoke PYTORCH_ENABLE_MPS_FALLBACK=1 $(BIN)/python train_net.py --overwrite \
		--config-file configs/synthetic/minvis_R18_tiny.yaml MODEL.DEVICE $(DEVICE) OUTPUT_DIR smoke/run SOLVER.MAX_ITER 2 \
		SOLVER.STEPS "()" SOLVER.WARMUP_ITERS 0 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0

bench: setup
	$(BIN)/python tools/benchmark.py inference

clean:
	rm -rf $(VENV) $(DOCS_VENV) site smoke build *.egg-info .pytest_cache .ruff_cache .mypy_cache
