# Crystal's commands. Each sets up what it needs (the environment in .venv) and can be repeated.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# A Linux machine without an NVIDIA GPU can spare itself the CUDA build of torch (gigabytes): give the address of PyTorch's own index
# of CPU wheels, which pytorch.org/get-started shows: make setup TORCH_INDEX=ADDRESS
TORCH_INDEX ?=
# Where the environment of the Cerebras SDK lies; a folder outside of the checkout serves several (CI).
CEREBRAS_ENV ?= .venv-cerebras

.PHONY: setup run test check gpu-check cerebras-check bench clean
setup: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old; expected Python 3.11 or newer; give make PYTHON=PATH" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--editable '.[data,ray,eval,report,sweep,hf,mdl,dev]'
	@touch $@

run: setup       ## three tiny stages on text and code from this Python installation, scored, reported in runs/tiny-sample/report
	$(BIN)/python -m crystal

test: setup      ## everything that can be proven without a GPU
	$(BIN)/python -m pytest -n 2

check: setup     ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

gpu-check: setup ## what needs an NVIDIA GPU; see benchmarks/README.md
	$(BIN)/python -m pytest tests/gpu --run-gpu

cerebras-check: setup $(CEREBRAS_ENV)/.complete ## what can be known of Cerebras systems without one, by the real SDK; downloads 3 GB once
	PATH=$(abspath $(CEREBRAS_ENV))/bin:$$PATH PYTHONPATH=$(CURDIR) $(CEREBRAS_ENV)/bin/python -m pytest -n 2 \
		tests/cerebras tests/model tests/mup/test_plan.py tests/test_optim.py tests/test_schedule.py tests/test_mdl.py
	CRYSTAL_CEREBRAS_PYTHON=$(abspath $(CEREBRAS_ENV))/bin/python $(BIN)/python -m pytest tests/stages/test_cerebras.py tests/test_readme.py -k "cerebras and not validate"

$(CEREBRAS_ENV)/.complete: pyproject.toml
	@python3.11 --version >/dev/null || { echo "error: no python3.11; expected it, the only one that cerebras-pytorch 2.10.0 supports; install it" >&2; exit 2; }
	python3.11 -m venv $(CEREBRAS_ENV)
	$(CEREBRAS_ENV)/bin/python -m pip install --quiet --editable '.[cerebras]' pytest pytest-xdist hypothesis
	@touch $@

bench: setup     ## speed beside the peers that are installed: make bench DATA=DIR [MBPP=FILE]; see benchmarks/README.md
	@test -n "$(DATA)" || { echo "error: no DATA; expected the folder that data.root takes; give make bench DATA=DIR" >&2; exit 2; }
	$(BIN)/python -m benchmarks.speed.tokenize data=$(DATA) out=benchmarks/results/speed/tokenize.json
	$(BIN)/python -m benchmarks.speed.prepare data=$(DATA) mbpp=$(MBPP) out=benchmarks/results/speed/prepare.json
	$(BIN)/python -m benchmarks.speed.loader out=benchmarks/results/speed/loader.json
	$(BIN)/python -m benchmarks.speed.generate data=$(DATA) out=benchmarks/results/speed/generate.json
	$(BIN)/python -m benchmarks.speed.execute mbpp=$(MBPP) out=benchmarks/results/speed/execute.json

clean:           ## drop the environment and all runs
	rm -rf .venv .venv-cerebras runs
