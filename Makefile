# make demo · make test · make bench · make lint: each sets up what it needs in .venv on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test bench lint clean

# The package and everything for training and testing. torch comes first, so that the extension builds against the torch
# that it will run with and no second one is downloaded into an isolated build.
$(VENV)/.ready: pyproject.toml setup.py $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision 'setuptools>=77' wheel ninja 'pybind11>=2.13' numpy
	$(BIN)/python -m pip install --verbose --disable-pip-version-check --no-build-isolation -e '.[train,test,dev]' \
		> $(VENV)/build.log 2>&1 || { tail -n 40 $(VENV)/build.log; exit 1; }
	$(BIN)/python -m cls2det_ops
	touch $@

demo: $(VENV)/.ready
	$(BIN)/cls2det demo $(ARGS)

test: $(VENV)/.ready
	$(BIN)/pytest $(ARGS)

bench: $(VENV)/.ready
	$(BIN)/pytest benchmarks $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info
