# TempSamp-R1 as a service.
#   make demo     train the tiny model through the whole ring on this machine, write a report
#   make test     checks and tests
#   make compose-test   the ring in containers, on an engine of its own where none answers
# Both install what they need first (.venv from the pinned lock; DEVICE=cuda takes the CUDA lock, PYTHON= names the
# interpreter).
#   make compare REGIME=few   methods over seeds in one of five regimes (METHODS=, SEEDS=), then docs/compare.md of all records
#   make chaos MINUTES=10 SEED=0 REPLICAS=1 RANKS=1   kill and freeze what runs in a demo at random, prove that no row was lost
#   make chaos-test   the faults that take minutes: ranks of a learner, networks that are cut
#   make env      write .env with random secrets, for docker compose
#   make bench-publish   speed of the weight path, in about four minutes; more: bench-learner, -reward, -data, -eval, -reframe, -dash
#   make bench-gpu       the weight path over NCCL and the learner at 4B, on one GPU; says so where there is none
#   make locks    pin the dependencies anew after a change of pyproject.toml; pins that still fit stay
DEVICE ?= cpu
PY := .venv/bin/python

# Knobs of `make demo`.
METHOD ?= tempsamp
SEED ?= 0
STEPS ?=
RUN ?=
RESUME ?=

# Of `make compare`; empty: only the page, all methods of the regime, seeds 0 to 4. REGIME also says what `make demo` trains
# on (there is `hybrid` too), and START whose start checkpoint `make tiny-model` makes.
REGIME ?=
METHODS ?=
SEEDS ?=
START ?=

# Of `make chaos`, with RUN and SEED.
MINUTES ?= 10
REPLICAS ?= 1
RANKS ?= 1

# Processes that share the tests; empty: one, with its output as it comes.
PYTEST_WORKERS ?= 2

.PHONY: setup env locks demo compare chaos chaos-test test compose-test check format tiny-model bench-learner bench-reward bench-data bench-eval bench-reframe bench-dash bench-queue bench-publish bench-gpu help

help:
	@grep -E '^#' Makefile | cut -c3-

setup:
	@deploy/setup.sh $(DEVICE)

env:
	@deploy/env.sh

locks:
	@deploy/locks/compile.sh

demo: setup
	@.venv/bin/tempsamp demo --method $(METHOD) --seed $(SEED) \
		$(if $(STEPS),--steps $(STEPS)) $(if $(RUN),--run $(RUN)) $(if $(RESUME),--resume) \
		$(if $(REGIME),--regime $(REGIME))

# Hours of work for two cores; finished runs have records, so it can be stopped and gone on with, here or elsewhere.
compare: setup
	@$(PY) -m jobs.demo.comparing $(if $(REGIME),--regime $(REGIME)) $(if $(METHODS),--methods $(METHODS)) $(if $(SEEDS),--seeds $(SEEDS))

chaos: setup
	@$(PY) -m jobs.chaos --minutes $(MINUTES) --seed $(SEED) --replicas $(REPLICAS) --ranks $(RANKS) $(if $(RUN),--run $(RUN))

# Slow faults: ranks, networks, a whole demo. In minutes; some want root and `ip netns`.
chaos-test: setup
	$(PY) -m pytest -m chaos

test: check
	$(PY) -m pytest $(PYTEST_WORKERS:%=--numprocesses=% --dist=loadfile --no-loadscope-reorder)

# The ring in containers: an engine that is there, or one of our own (root, Debian).
compose-test: setup
	@tests/compose/with_engine.sh

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

format: setup
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

tiny-model: setup
	$(PY) -m jobs.toy.make_model $(if $(START),--start $(START) --clips runs/starts/$(START)-clips) \
		--out $(if $(START),runs/starts/$(START),deploy/tiny-qwen3vl)

# Beside TRL, in a venv of its own that also sees .venv.
bench-learner: setup
	@tests/bench/learner/trl.sh .venv-trl
	@$(PY) -m tests.bench.learner --trl .venv-trl/bin/python --json docs/bench/learner.json

bench-reward: setup
	@$(PY) -m tests.bench.reward --json docs/bench/reward.json

bench-data: setup
	@$(PY) -m tests.bench.clips --json docs/bench/clips.json
	@$(PY) -m tests.bench.conversion

bench-eval: setup
	@$(PY) -m tests.bench.evaluation
	@$(PY) -m tests.bench.answering

bench-reframe: setup
	@$(PY) -m tests.bench.reframe

bench-dash: setup
	@$(PY) -m tests.bench.dash --json docs/bench/dash.json

bench-queue: setup
	@$(PY) -m tests.bench.queue --json docs/bench/queue.json

bench-publish: setup
	@$(PY) -m tests.bench.publishing --json docs/bench/publish.json

bench-gpu:
	@$(PY) -m tests.bench.gpu_publishing --json docs/bench/gpu_publish.json
	@$(PY) -m tests.bench.gpu_learner --json docs/bench/gpu_learner.json
