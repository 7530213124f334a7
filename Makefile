# Everything runs in .venv, which the first target that needs it makes and the others reuse.
# `make` alone lists the targets.

VENV := .venv
PY := $(VENV)/bin/python
# Set when the environment is complete: an interrupted set-up is taken up again by the next make.
STAMP := $(VENV)/.complete

# The Python that .venv is made from: the first of these that is 3.10 or newer and has venv.
# `make setup PYTHON=...` names another; it has no effect on a .venv that exists (make clean first).
PYTHON ?=
PYTHONS := python3 python3.13 python3.12 python3.11 python3.10

# Passed on: make test ARGS="-k anchors", make demo DEMO_ARGS="--quick",
# make benchmark BENCHMARK_ARGS="--threads 1".
ARGS ?=
DEMO_ARGS ?=
BENCHMARK_ARGS ?=
GPU_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format benchmark gpu clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it, Detectron2 too
	@echo "$(VENV) is ready: $$($(PY) --version)"

demo: $(STAMP) ## train and test a small detector on generated images, on the CPU
	@$(PY) tools/demo.py $(DEMO_ARGS)

# Processes take over tests from each other, so that all end at about the same time.
test: $(STAMP) ## run the test suite (ARGS="..." goes to pytest)
	@$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(STAMP) ## check format, style and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

format: $(STAMP) ## format the code and mend what ruff can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

benchmark: $(STAMP) ## measure speed and memory beside two peers: 6 to 10 minutes on two idle cores
	@$(PY) -m benchmarks targets --output output/benchmark $(BENCHMARK_ARGS)

# Also where no .venv can be made: then with the Python that has PyTorch.
gpu: ## measure and test everything on a GPU, in 8 minutes (GPU_ARGS="--minutes 4")
	@$(if $(wildcard $(PY)),$(PY),$(or $(PYTHON),python3)) -m benchmarks gpu $(GPU_ARGS)

clean: ## remove .venv, build products and caches (output/ and datasets/ stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Also when the stamp is there but .venv's Python is gone (uninstalled), and when DETECTRON2 is given:
# the script then says whether it is used.
REDO := $(if $(DETECTRON2),FORCE) $(shell test -x $(PY) || echo FORCE)

$(STAMP): setup.py pyproject.toml constraints.txt tools/install_detectron2.py $(REDO)
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
		set -e; \
		for python in $(or $(PYTHON),$(PYTHONS)); do \
			reason=$$("$$python" -c 'import sys; \
				sys.version_info >= (3, 10) or sys.exit("Python %d.%d is older than 3.10" % sys.version_info[:2]); \
				import venv, ensurepip' 2>&1) && found=$$python && break; \
			tried="$$tried$$(printf '\n  %s: %s' "$$python" "$$(echo "$$reason" | tail -n 1)")"; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.10 or newer with the venv module was found. Tried:$$tried"; \
			echo "Install one (on Debian and Ubuntu: apt install python3-venv), or name it:"; \
			echo "  make setup PYTHON=/path/to/python3.11"; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$found" --version) ..."; \
		rm -rf $(VENV); \
		"$$found" -m venv $(VENV); \
	}
	@rm -f $@
	@echo "Installing torch, torchvision and the other requirements (several GB, minutes the first time) ..."
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(PY) tools/install_detectron2.py --constraint constraints.txt
	@touch $@

FORCE:
