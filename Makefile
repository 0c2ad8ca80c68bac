# `make demo` trains actors on real text, `make check` runs the quick checks and `make test` runs all of them. Each sets up
# .venv first; only Python is needed. `make gpu` checks on a machine with a GPU what others cannot.
# `make docs` builds the documentation into site/. `make install` puts the command on PATH, with EXTRAS of pyproject.toml.
PYTHON ?= python3
EXTRAS ?= actors
BIN := .venv/bin
READY := .venv/.ready

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))
IS_SUPPORTED = @$(PYTHON) -c '$(SUPPORTED)' || \
    { echo "forgectl is tested with Python 3.10 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }

.PHONY: demo lint check test soak chaos matrix gpu bench bench-trl docs install uninstall clean

demo: $(READY)
	$(BIN)/forgectl launch sample_configs/story.yaml

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -q tests/unit -n auto -m 'not thorough'

test: lint
	@tests/lab/install.sh
	$(BIN)/python -m pytest -q -n 4 --dist worksteal

# Signals at eight times as many random moments as `make test` tries.
soak: $(READY)
	@tests/lab/install.sh
	SOAK=8 $(BIN)/python -m pytest -q -n 4 tests/process/test_interrupts.py tests/ssh/test_ssh_interrupts.py

# A thousand kills of anything at random moments, which takes half an hour; begun again, it goes on where it was.
chaos: $(READY)
	PYTHONPATH=benchmarks $(BIN)/python -m tests.faults.chaos --kills 1000 --json benchmarks/results/chaos.json

# The lowest and the newest versions of what forgectl depends on, in environments of their own, from the package index.
matrix: $(READY)
	$(BIN)/python tools/matrix.py

gpu: $(READY)
	$(BIN)/python tests/gpu/check.py

bench: $(READY)
	@mkdir -p benchmarks/results
	-$(BIN)/python benchmarks/launch.py --json benchmarks/results/launch.json
	-$(BIN)/python benchmarks/messages.py --json benchmarks/results/messages.json
	-$(BIN)/python benchmarks/deaths.py --repeat 5 --json benchmarks/results/deaths.json
	-$(BIN)/python benchmarks/hosts.py --json benchmarks/results/hosts.json
	-$(BIN)/python benchmarks/spares.py --json benchmarks/results/spares.json
	-$(BIN)/python benchmarks/syncing.py --json benchmarks/results/syncing.json
	-$(BIN)/python benchmarks/many_hosts.py --json benchmarks/results/many_hosts.json
	-$(BIN)/python benchmarks/weights.py --json benchmarks/results/weights.json
	-$(BIN)/python benchmarks/generation.py --json benchmarks/results/generation.json
	-$(BIN)/python benchmarks/training.py --json benchmarks/results/training.json
	-$(BIN)/python benchmarks/soak.py --json benchmarks/results/soak.json
	-$(BIN)/python benchmarks/grpo.py --only asynchronous,synchronous --json benchmarks/results/grpo.json
	-$(BIN)/python benchmarks/grpo.py --only smollm --json benchmarks/results/grpo_smollm.json
	-$(BIN)/python benchmarks/hangs.py --json benchmarks/results/hangs.json
	$(BIN)/python benchmarks/pages.py

docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet
	@echo "the documentation is in site/index.html"

# TRL comes from the package index, into an environment of its own in ~/.cache/forgectl-trl.
bench-trl: $(READY)
	$(BIN)/python benchmarks/beside_trl.py --json benchmarks/results/trl.json

install:
	$(IS_SUPPORTED)
	@$(PYTHON) tools/install.py install --extras '$(EXTRAS)'

uninstall:
	@$(PYTHON) tools/install.py uninstall

$(READY): pyproject.toml constraints.txt
	$(IS_SUPPORTED)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[rl,dev,docs]'
	$(BIN)/python -m compileall -q forgectl
	@touch $@

clean:
	rm -rf .venv
