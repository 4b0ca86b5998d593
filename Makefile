# make demo         an agent at work in a container, on a machine with nothing installed
# make test         every check and every test, with real engines
# make check        the checks and the tests that need no engine
# make test-faults  the faults alone, with their table
# make soak         twenty minutes of random faults (SOAK_MINUTES=20)
# make bench        us against the bare command line, and against what one would pick instead
# make docs         the documentation as a site, in .site/

export PATH := $(PATH):/usr/sbin:/sbin
SOAK_MINUTES = 20

# For thousands of processes, where Python is told to write no bytecode by itself. Each worker reads what is collected.
export PYTHONDONTWRITEBYTECODE :=

# An engine's tests run in one worker, one after another, and mostly wait; so do the whole machine's, in qemu, and each file's.
pytest = .venv/bin/python -m pytest -n 5

demo: .venv/ready
	scripts/setup demo
	.venv/bin/python -m scripts.demo

test: .venv/ready
	$(MAKE) --jobs=2 lint engines collected
	$(pytest)

check: .venv/ready
	$(MAKE) --jobs=2 lint collected
	$(pytest) -m 'not engine'

test-faults: .venv/ready engines
	$(pytest) tests/faults

soak: .venv/ready engines
	.venv/bin/python -m tests.faults.soak $(SOAK_MINUTES)

bench: .venv/ready engines
	.venv/bin/python -m pip install --quiet --group bench
	.venv/bin/python -m tests.benchmarks $(BENCH)

docs: .venv/ready
	.venv/bin/python -m mkdocs build --strict --site-dir .site

# Once, with the bytecode of all modules, and not in each of the workers at the same time.
collected: .venv/ready
	.venv/bin/python -m compileall -q container_runner
	.venv/bin/python -m pytest --collect-only -qq >.venv/collected || { cat .venv/collected; exit 1; }

lint: .venv/ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

engines: .venv/ready
	scripts/setup test
	.venv/bin/python -m tests.integration

.venv/ready: pyproject.toml scripts/setup
	scripts/setup venv
	touch $@

.PHONY: demo test check test-faults soak bench docs collected lint engines
