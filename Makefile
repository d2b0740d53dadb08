# medseg on a fresh machine: `make demo` and `make test`. Nothing is installed outside .venv.
#
#   make setup                    .venv with medseg and its tools; a torch that is there is kept
#   make setup PYTHON=python3.12  with another Python (3.11 or newer)
#   make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#                                 Linux without a GPU: the CPU build, 10 times smaller
#
# Paths are relative and recipes run in /bin/sh, so that any shell and any folder name will do.

SHELL = /bin/sh
PYTHON ?= python3
TORCH ?=
PEER ?=
DATASET ?= sample_data/abdomen
NNUNET_MODEL ?=
NNUNET_IMAGES ?=
PY = .venv/bin/python
STAMP = .venv/medseg-installed

.PHONY: help setup demo test acceptance bench bench-training bench-memory clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON='$(PYTHON)' TORCH='$(TORCH)' sh scripts/setup.sh
	@touch $(STAMP)

demo: $(STAMP)
	@sh scripts/demo.sh

test: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

acceptance: $(STAMP)
	$(PY) acceptance/run.py

bench: $(STAMP)
	$(PY) benchmarks/nifti_io.py
	$(PY) benchmarks/dicom_read.py
	$(PY) benchmarks/metrics.py
	$(PY) benchmarks/keep_largest.py
	$(PY) benchmarks/meshes.py
	$(PY) benchmarks/previews.py
	$(PY) benchmarks/forward.py
	$(PY) benchmarks/sliding_window.py
	@if [ -n '$(PEER)' ]; then $(PY) benchmarks/restore.py --peer '$(PEER)'; fi
	@if [ -n '$(PEER)' ]; then sh benchmarks/nnunet_predict.sh $(PY) '$(PEER)' build/nnunet \
		'$(NNUNET_MODEL)' '$(NNUNET_IMAGES)'; fi
	@if [ -n '$(PEER)' ]; then $(PY) benchmarks/check_dataset.py '$(DATASET)' --peer '$(PEER)'; \
	else echo 'check against nnU-Net: make bench PEER=/its/python DATASET=/a/dataset'; fi

bench-training: $(STAMP)
	$(PY) benchmarks/losses.py
	$(PY) benchmarks/augmentation.py $(if $(PEER),--peer '$(PEER)')
	@if [ -n '$(PEER)' ]; then $(PY) benchmarks/preprocess_dataset.py --ct --peer '$(PEER)'; \
		$(PY) benchmarks/preprocess_dataset.py '$(DATASET)' --both --peer '$(PEER)'; fi

# An hour on two cores: a scan of 512 x 512 x 2000, and 118 classes on 512 x 512 x 800.
bench-memory: $(STAMP)
	$(PY) benchmarks/huge_scan.py long
	$(PY) benchmarks/huge_scan.py classes $(if $(PEER),--peer '$(PEER)')
	$(PY) benchmarks/training_memory.py

clean:
	rm -rf .venv demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
