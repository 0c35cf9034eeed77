# TempSamp-R1 as a service. `make demo` and `make test` install what they need; DEVICE=cuda takes the CUDA lock.
DEVICE ?= cpu
PY := .venv/bin/python

.PHONY: setup check
setup:
	@deploy/setup.sh $(DEVICE)

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
