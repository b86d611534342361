# Two commands on a machine with nothing but Python 3.11 to 3.14: `make train` and `make test`.
# ARGS goes to the command: make train ARGS="--env-id pong --num-workers 4"

PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin/python
PARALLEL = -n auto --maxprocesses 4 --dist worksteal

.PHONY: train test test-long test-portable test-ray test-slow lint docs bench regression clean

train: $(VENV)/installed
	$(RUN) -m atari_dqn.train $(ARGS) || [ $$? = 3 ]  # stopped by Ctrl-C, state saved

test: lint
	$(RUN) -m pytest -m "not slow and not long and not ray" $(PARALLEL) $(ARGS)

test-long: $(VENV)/installed
	$(RUN) -m pytest -m "long and not slow and not ray" $(PARALLEL) $(ARGS)

test-portable: $(VENV)/installed
	PYTHONPATH=$(CURDIR)/tests/without_linux $(RUN) -m pytest tests/system tests/workers tests/runs -m "not slow and not long and not ray" $(PARALLEL) $(ARGS)

test-ray: $(VENV)/installed
	$(RUN) -m pytest -m "ray and not slow" $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow $(ARGS)

bench: $(VENV)/installed
	$(RUN) -m atari_dqn.bench $(ARGS)

regression: $(VENV)/installed
	$(RUN) -m benchmarks.regression $(ARGS)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 14) or sys.exit("error: needs Python 3.11 to 3.14, this is %d.%d; try make train PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, and 6 GB where torch comes with CUDA"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,dashboard]"
	touch $@

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
