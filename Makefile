# Crystal's commands. Each sets up what it needs (the environment in .venv) and can be repeated.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# A Linux machine without an NVIDIA GPU can spare itself the CUDA build of torch (gigabytes): give the address of PyTorch's own index
# of CPU wheels, which pytorch.org/get-started shows: make setup TORCH_INDEX=ADDRESS
TORCH_INDEX ?=

.PHONY: setup run test check gpu-check cerebras-check clean
setup: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old; expected Python 3.11 or newer; give make PYTHON=PATH" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--editable '.[data,eval,report,sweep,hf,dev]'
	@touch $@

run: setup       ## three tiny stages on text and code from this Python installation, scored, reported in runs/tiny-sample/report
	$(BIN)/python -m crystal

test: setup      ## everything that can be proven without a GPU
	$(BIN)/python -m pytest

check: setup     ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

gpu-check: setup ## what needs an NVIDIA GPU; see benchmarks/README.md
	$(BIN)/python -m pytest tests/gpu --run-gpu

cerebras-check: .venv-cerebras/.complete ## the model, muP and the optimizer under the Cerebras SDK's own torch 2.4.0, and the lowered train step; downloads 3 GB once
	.venv-cerebras/bin/python -m pytest tests/cerebras tests/model tests/mup/test_plan.py tests/test_optim.py tests/test_schedule.py

.venv-cerebras/.complete: pyproject.toml
	@python3.11 --version >/dev/null || { echo "error: no python3.11; expected it, the only one that cerebras-pytorch 2.10.0 supports; install it" >&2; exit 2; }
	python3.11 -m venv .venv-cerebras
	.venv-cerebras/bin/python -m pip install --quiet --editable '.[cerebras]' pytest hypothesis
	@touch $@

clean:           ## drop the environment and all runs
	rm -rf .venv .venv-cerebras runs
