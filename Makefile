# make demo    install, then train and export a tiny BERT in minutes
# make test    run the fast tests; make test-slow: run those that take minutes;
#              make test-slurm: run those on a private Slurm cluster
#              make test-torch TORCH=2.15.0: run those that another torch could break, with it
# make check   check format, lint, types and scripts
# make fix     format the code, and fix what ruff can fix
# make bench   run small benchmarks and write the results to docs/log.md
# make bench-gpu  tests, benchmarks, a profile and the best settings of a GPU, in 12 minutes;
#              make bench-gpu DRY=1: the same at small sizes on any machine
# make drill   inject faults into a small run, one after another, and report how it recovers
# make docs    build the documentation as a site with search, in build/site/html
# make hashes  write the checksums of constraints.txt's packages to .ci/hashes*.txt
# make wheels  print which Pythons and platforms have wheels of all packages
# make clean   remove the environment and all caches
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || \
	command -v python3.13 || command -v python3.14 || echo python3)
BIN := .venv/bin
PIP := DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-slurm test-torch check fix \
	bench bench-gpu docs drill install hashes wheels clean
.DEFAULT_GOAL := demo

install: .venv/installed

# DS_BUILD_OPS=0: compile nothing during installation; our optimizers need none of DeepSpeed's ops.
# --use-pep517: without it, pip before 23.1 (Debian 12, Python 3.11) runs seqeval's setup.py, which
# fails.
# First the packages whose checksums are known, then the project, and torch in this machine's build.
.venv/installed: pyproject.toml constraints.txt .ci/hashes.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.11 to 3.14 is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --use-pep517 --require-hashes --no-deps -r .ci/hashes.txt
	$(PIP) --use-pep517 -e '.[dev,docs]' -c constraints.txt
	touch $@

demo: install
	$(BIN)/python -m pretrain.run +model=tiny recipe=demo run.name=demo

PYTEST := $(BIN)/python -m pytest
# Two workers, since most tests keep one core busy. A file's tests stay together, so that its
# fixtures are made once.
PARALLEL := --numprocesses 2 --dist loadscope

test: install
	$(PYTEST) $(PARALLEL) -m "not slow and not slurm and not gpu"

test-slow: install
	$(PYTEST) $(PARALLEL) -m "slow and not slurm" --timeout 1800

test-slurm: install
	$(PYTEST) -m slurm --timeout 1800

# Another torch than that of constraints.txt, and .venv's packages behind it. 6 GB of disk.
OTHER := build/torch-$(TORCH)
SITE_PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
test-torch: install
	@test -n "$(TORCH)" || { echo "name one: make test-torch TORCH=2.15.0" >&2; exit 2; }
	$(BIN)/python -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	site=$$($(OTHER)/bin/python $(SITE_PACKAGES)) && \
	  $(BIN)/python $(SITE_PACKAGES) >$$site/behind.pth && \
	  TRITON_FOLDER=$$site $(OTHER)/bin/python -m pytest -m "not gpu and not slurm" --timeout 1800 \
	    $(addprefix tests/pretrain/,engine optim model distributed)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources slurm/*.sh slurm/job.inc docs/launch/hosts.sh .ci/run
	$(BIN)/hadolint Dockerfile

fix: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m scripts.bench.record cpu

bench-gpu: install
	$(BIN)/python -m scripts.bench.record gpu $(if $(DRY),dry=true)

# A broken link, anchor or image fails
docs: install
	$(BIN)/python -m scripts.build_site

drill: install
	$(BIN)/python -m scripts.drill

# Of every file of a version, for all machines. torch is with the CUDA packages, which the images
# install: a machine may have another build of it, such as one for CPUs.
COMPILE := build/uv/bin/uv pip compile --quiet --no-emit-index-url --generate-hashes --no-annotate \
	--custom-compile-command 'make hashes'
hashes: install
	$(PIP) --target build/uv --upgrade uv
	$(COMPILE) --no-deps --universal --python-version 3.11.5 constraints.txt \
	  --no-emit-package torch --output-file .ci/hashes.txt
	echo torch | $(COMPILE) --python-platform x86_64-manylinux_2_28 --constraint constraints.txt - \
	  $$(sed -n '/^torch==/d; s/^\(.*\)==.*/--no-emit-package \1/p' constraints.txt) \
	  --output-file .ci/hashes-cuda.txt

wheels: install
	$(BIN)/python -m scripts.check_wheels

clean:
	rm -rf .venv .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache
