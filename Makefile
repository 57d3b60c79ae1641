# Everything happens in .venv. Only Python >= 3.10 with venv has to be installed beforehand.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
EXTRAS := .venv/.extras
DOCS := .venv/.docs
INTEGRATIONS := .venv-integrations
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick integrations gpu check format docs clean

demo: $(READY)
	$(BIN)/pqm-fast demo --out runs/demo-$$(date +%Y%m%d-%H%M%S) $(ARGS)

test: $(EXTRAS)
	$(PYTEST) $(ARGS)

# The kernels and the trainer, without what compiles ahead of time and what starts several processes.
quick: $(EXTRAS)
	$(PYTEST) tests/kernels tests/data tests/model tests/train -m 'not (slow or aot or processes)' $(ARGS)

# Our rewards in the code of the libraries that they are for.
integrations: $(INTEGRATIONS)/.ready
	OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest tests/rewards $(ARGS)

gpu: $(READY)
	$(BIN)/python -m pqm_benchmarks gpu --out runs/gpu-$$(date +%Y%m%d-%H%M%S) $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site is in site/index.html. The variable silences a notice of the theme about its successor.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

$(READY): constraints.txt setup.py pyproject.toml kernels/VERSION
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "pqm-fast needs Python 3.10 or later")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

# Packages that some options need. Only the tests install them: transformers loads torchao wherever it is installed,
# which takes a second and prints messages.
$(EXTRAS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[extras,serve]'
	@touch $(EXTRAS)

# An environment of its own: without --no-deps, verl and OpenRLHF would bring other releases of transformers, and packages
# that need a GPU.
$(INTEGRATIONS)/.ready: constraints.txt pyproject.toml tests/rewards/integrations.txt
	test -x $(INTEGRATIONS)/bin/pip || $(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,rl]' --requirement tests/rewards/integrations.txt
	$(INTEGRATIONS)/bin/python -m pip install --quiet --no-deps verl==0.9.1 openrlhf==0.11.2
	@touch $@

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $(DOCS)

clean:
	rm -rf .venv $(INTEGRATIONS) runs site build *.egg-info
