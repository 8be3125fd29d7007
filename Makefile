# make run    the timer workload natively and under trapline, side by side
# make test   the tests, on both platforms, in about 15 minutes on two CPUs; make test-all: those that take longer, too
# Everything else is below; each target sets up what it needs, and only what is missing or out of date.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.installed
VDSO := vdso/trapline-vdso.so
# The fast ones first.
TESTS ?= tests/unit tests/workloads tests/programs
MAKEFLAGS += --no-print-directory
# Where this is set, every start of trapline compiles it anew, which takes as long again as all the rest.
unexport PYTHONDONTWRITEBYTECODE

run: all
	@echo 'workloads/threadcputimers: 1000 CPU-time timers of 10 ms, armed during a sleep of 5 s'
	@$(PY) -P -m trapline compare --time-form -n 1 -- workloads/bin/threadcputimers

test: all
	@$(PY) -m pytest $(TESTS)

# What a change should have passed before it is kept.
test-all: check test
	@$(PY) -m pytest -m long $(TESTS) || [ $$? = 5 ] # 5: there is none among TESTS
	@$(PY) workloads/bench.py --quick

# The tests' own C programs are compiled by the tests that run them: here too, so that a change of a header
# they share with workloads/ does not wait for those.
check: $(SETUP) | gcc
	@$(PY) -m ruff check .
	@for source in $(wildcard tests/*/*.c); do \
	  gcc -fsyntax-only -O2 -std=gnu11 -Wall -Wextra -Werror -Iworkloads $$source || exit 1; done
	@MYPYPATH=src $(PY) -m mypy -p trapline.sentry -p trapline.platform
	@$(PY) tests/import_direction.py

bench: all
	@$(PY) workloads/bench.py $(BENCHFLAGS)

# docs/benchmarks.*, and README's table, from the bench.json that `make bench` wrote.
bench-docs: $(SETUP)
	@$(PY) workloads/bench_report.py

# docs/growth.*: cost against the number of processes, threads and timers.
growth: all
	@$(PY) workloads/growth.py $(GROWTHFLAGS)

# Load, kills and fuzzing for three quarters of an hour (SOAKFLAGS="--minutes 5 --kills 100 --fuzz 1").
soak: all
	@$(PY) workloads/soak.py $(SOAKFLAGS)

fuzz: all
	@$(PY) workloads/fuzz.py $(FUZZFLAGS)

# The pages of docs/ that are made from the system call table and from the definitions of the verbs.
docs: $(SETUP)
	@$(PY) -P -m trapline syscalls --format markdown > docs/syscalls.md.new
	@mv docs/syscalls.md.new docs/syscalls.md
	@$(PY) -P -m trapline help --markdown > docs/cli.md.new
	@mv docs/cli.md.new docs/cli.md

all: $(SETUP) vdso workloads

setup: $(SETUP)

$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo 'trapline needs Python 3.11 or newer: apt-get install python3' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo 'trapline needs the venv module of Python: apt-get install python3-venv' >&2; exit 1; }
	@echo 'setting up $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

vdso: $(VDSO)

$(VDSO): vdso/build.py $(wildcard vdso/*.c vdso/*.h vdso/*.lds) | $(SETUP) gcc
	@$(PY) vdso/build.py
	@touch $@

workloads: | gcc
	@$(MAKE) -s -C workloads

gcc:
	@command -v gcc >/dev/null && echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1 || \
	  { echo 'trapline needs gcc and the C library headers: apt-get install gcc libc6-dev' >&2; exit 1; }

clean:
	rm -rf workloads/bin $(VDSO) bench.json build dist src/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sentry platform vdso workloads tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

help:
	@echo 'make run        the timer workload natively and under trapline'
	@echo 'make test       the tests (TESTS=tests/unit for some)'
	@echo 'make check      ruff, gcc -Wall, mypy --strict, direction of imports'
	@echo 'make test-all   check, test, the tests that take minutes, a quick bench'
	@echo 'make bench      the benchmark (BENCHFLAGS=--quick)'
	@echo 'make bench-docs its pages, chart and table, from what make bench found'
	@echo 'make growth     cost against 10, 100, 1000 processes, threads, timers; its page'
	@echo 'make soak       mixed load, kills of trapline, fuzzing: 45 minutes (SOAKFLAGS=...)'
	@echo 'make fuzz       only the fuzzer (FUZZFLAGS="--minutes 1")'
	@echo 'make docs       pages made from the system call table and the verbs'
	@echo 'make setup vdso workloads   what the others need'
	@echo 'make clean distclean        remove what was built; the environment too'

.PHONY: run test test-all check bench soak fuzz bench-docs growth docs all setup vdso workloads gcc clean distclean help
