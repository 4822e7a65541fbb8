# WHEEL=cls2det-….whl installs that file in place of the checkout, so no compiler is needed: make demo WHEEL=…
# make demo · make test · make sanitize · make bench · make bench-compare · make docs · make gpu-check · make lint · make wheel ·
# make release-check: each sets up what it needs in .venv on first use; gpu-check uses the Python that is there.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WHEEL  ?=
EXTRAS := train,study,detr,onnx,test,docs,dev

.PHONY: demo test sanitize sanitize-memory sanitize-races bench bench-compare docs gpu-check lint wheel wheel-again sdist release-check clean

# The package and everything for training and testing. torch comes first, so that the extension builds against the torch
# that it will run with and no second one is downloaded into an isolated build.
$(VENV)/.ready: $(or $(WHEEL),pyproject.toml setup.py $(shell find csrc -type f))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision 'setuptools>=77' wheel ninja numpy
	$(BIN)/python -m pip install --verbose --disable-pip-version-check --no-build-isolation $(if $(WHEEL),,-e) '$(or $(WHEEL),.)[$(EXTRAS)]' \
		> $(VENV)/build.log 2>&1 || { tail -n 40 $(VENV)/build.log; exit 1; }
	$(BIN)/python -I -m cls2det_ops
	touch $@

demo: $(VENV)/.ready
	$(BIN)/cls2det demo $(ARGS)

# Side by side, one process per core; ARGS="-n 0" runs them one after another.
SIDE_BY_SIDE = -n auto --maxprocesses 8 --dist worksteal
test: $(VENV)/.ready
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

# Operator tests once more: CPU and emulated CUDA kernels with AddressSanitizer and UBSan, then the CUDA kernels with the race
# detector (see docs/testing.md).
sanitize: sanitize-memory sanitize-races

SANITIZER_LIBRARIES = $(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libubsan.so)
sanitize-memory: $(VENV)/.ready
	mkdir -p build
	CLS2DET_SANITIZE=1 CLS2DET_CUDA=0 $(BIN)/python setup.py -q build --build-base build/sanitized \
		--build-lib build/sanitized/lib > build/sanitized.log 2>&1 || { tail -n 40 build/sanitized.log; exit 1; }
	CLS2DET_FUZZ_EXAMPLES=100 LD_PRELOAD="$(SANITIZER_LIBRARIES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		PYTHONPATH=$(CURDIR)/build/sanitized/lib CLS2DET_EMULATOR=sanitize \
		$(BIN)/pytest -q $(SIDE_BY_SIDE) --capture=sys --backends cpu,emulated --ignore tests/test_compile.py \
		--ignore tests/test_determinism.py $(ARGS)

# without the tests of equal bits and of hostile values: they repeat calls, and `make test` and sanitize-memory run them
sanitize-races: $(VENV)/.ready
	CLS2DET_EMULATOR=races CLS2DET_FUZZ_EXAMPLES=20 $(BIN)/pytest -q $(SIDE_BY_SIDE) --backends emulated --ignore tests/test_large.py \
		--ignore tests/test_determinism.py --ignore tests/test_memory.py $(ARGS) \
		--deselect tests/emu/test_emulated.py::test_no_order_of_threads_and_no_size_of_the_grid_changes_a_bit

bench: $(VENV)/.ready
	$(BIN)/pytest benchmarks $(ARGS)

# Ratios against the committed runs on this kind of machine, and instruction counts where there is valgrind.
bench-compare: $(VENV)/.ready
	rm -rf build/bench
	$(BIN)/pytest benchmarks --bench-out build/bench $(ARGS)
	! command -v valgrind > /dev/null || $(BIN)/python benchmarks/instructions.py --out build/bench/instructions.json
	$(BIN)/python benchmarks/compare.py $$(ls build/bench/cuda.json build/bench/cpu.json 2> /dev/null | head -n 1) \
		$(if $(shell command -v valgrind),--instructions build/bench/instructions.json)

# The site in build/site. A warning is an error.
docs: $(VENV)/.ready
	$(BIN)/python -m sphinx -q -E -W --keep-going -c docs . build/site
	@echo "open build/site/index.html"

gpu-check:
	$(PYTHON) tests/gpu_check.py $(ARGS)

# Style, format, types and dead code; .pre-commit-config.yaml runs the quick ones before each commit.
lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests/emu tests/replay -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy
	$(BIN)/vulture

# The wheel in build/wheel: one file for every Python, torch from 2.11 and Linux from 2018. CLS2DET_CUDA=0 leaves the CUDA kernels
# out. The same sources, compiler and toolkit give the same bytes. (nvcc names kernels after the folder of their source: with
# CUDA, only in the same folder.)
# A compiler that is too new for that name needs PLATFORM=linux, or the container that docs/release.md names.
PLATFORM ?= manylinux_2_28
venv_python = "$(if $(filter /%,$(BIN)),$(BIN),$(CURDIR)/$(BIN))/python" # in a folder with blanks, too
build_wheel = umask 022 && SOURCE_DATE_EPOCH=315532800 TORCH_CUDA_ARCH_LIST=all $(venv_python) -m pip wheel . \
	--no-deps --no-build-isolation --wheel-dir $(1) --config-settings=--build-option=--plat-name=$(PLATFORM)_$$(uname -m)
wheel: $(VENV)/.ready
	rm -rf build/wheel
	$(call build_wheel,build/wheel) > $(VENV)/wheel.log 2>&1 || { tail -n 40 $(VENV)/wheel.log; exit 1; }
	$(BIN)/python tests/wheel_check.py build/wheel/*.whl

# Without CUDA, and once more from the unpacked sdist in another folder: the bytes must be the same.
wheel-again: export CLS2DET_CUDA = 0
wheel-again: wheel sdist
	rm -rf build/again && mkdir build/again
	tar -xf build/sdist/*.tar.gz -C build/again
	cd build/again/cls2det-*/ && $(call build_wheel,..) > ../wheel.log 2>&1 || { tail -n 40 ../wheel.log; exit 1; }
	$(BIN)/python tests/wheel_check.py build/wheel/*.whl build/again/*.whl

sdist: $(VENV)/.ready
	rm -rf build/sdist
	$(BIN)/python setup.py -q sdist --formats gztar --dist-dir build/sdist > $(VENV)/sdist.log 2>&1 || { cat $(VENV)/sdist.log; exit 1; }

# What must hold before a version is published: the pages, the metadata, and what tests/release_check.py says. ARGS=--final also
# wants the version's date in CHANGELOG.md, ARGS=--index takes torch from the index, ARGS=--no-tests looks at the files alone.
release-check: wheel sdist docs
	$(BIN)/python -m twine check --strict build/wheel/*.whl build/sdist/*.tar.gz
	$(BIN)/python tests/release_check.py build/wheel/*.whl build/sdist/*.tar.gz $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info
