# make demo   an agent at work in a container, on a machine with nothing installed
# make test   every check and every test, with real engines
# make check  the checks and the tests that need no engine

export PATH := $(PATH):/usr/sbin:/sbin

demo: .venv/ready
	scripts/setup demo
	.venv/bin/python -m scripts.demo

test: lint
	scripts/setup test
	.venv/bin/python -m tests.integration.images
	.venv/bin/python -m pytest

check: lint
	.venv/bin/python -m pytest -m 'not engine'

lint: .venv/ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

.venv/ready: pyproject.toml scripts/setup
	scripts/setup venv
	touch $@

.PHONY: demo test check lint
