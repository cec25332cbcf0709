# Every target sets itself up: it needs only Python 3.10 or newer, pip, and a package index.
PYTHON ?= python3
VENV := .venv
COMMANDS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(COMMANDS)
STAMP := $(VENV)/.locked
DOCS_VENV := .venv-docs
OLDEST_VENV := .venv-oldest
UV ?= uv

.PHONY: setup quickstart test test-fast test-oldest coverage lint lock docs wheel-check smoke bench clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed, this is ' + sys.version + '; set PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	@echo "Fetching what requirements.lock pins: on Linux about 5 GB, most of it PyTorch's libraries for CUDA."
	@echo "INSTALL.md says how to take the small build for CPUs instead."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	-$(BIN)/python -m lbvq info
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

# The fast tests with the oldest releases that pyproject.toml promises, on Linux with Python 3.10; about 3 GB to fetch.
test-oldest: $(OLDEST_VENV)/.locked
	$(OLDEST_VENV)/$(COMMANDS)/python -m pytest -m "not slow"

$(OLDEST_VENV)/.locked: requirements-oldest.lock
	$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 10) and 'Python 3.10 is needed, this is ' + sys.version + '; set PYTHON=...')"
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/$(COMMANDS)/python -m pip install --quiet --upgrade pip
	$(OLDEST_VENV)/$(COMMANDS)/python -m pip install --quiet --require-hashes -r requirements-oldest.lock
	$(OLDEST_VENV)/$(COMMANDS)/python -m pip install --quiet --no-deps --editable .
	touch $(OLDEST_VENV)/.locked

# Which lines the fast tests run, of code in the process of the tests; the last line is the figure.
coverage: setup
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term:skip-covered

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

# Writes requirements.lock and requirements-oldest.lock, with hashes, from pyproject.toml; pins of the first that still fit
# stay as they are. It needs uv. All extras are in them but those of the pages, which have requirements-docs.lock.
EXTRAS := tensorboard wandb slurm timm lite0 drive sam sam2 open-vocab eval supervision onnx openvino notebooks dev
COMPILE := $(UV) pip compile --quiet pyproject.toml $(EXTRAS:%=--extra %) --python-version 3.10 --generate-hashes \
	--no-header --no-annotate
lock:
	$(COMPILE) --universal --output-file requirements.lock
	$(COMPILE) --upgrade --resolution lowest-direct --python-platform x86_64-manylinux_2_28 \
		--output-file requirements-oldest.lock

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
	rm -rf $(VENV) $(DOCS_VENV) $(OLDEST_VENV) site smoke build *.egg-info .pytest_cache .ruff_cache .mypy_cache
