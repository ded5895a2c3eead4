# `make demo` and `make test` work from a clean clone with Python >= 3.11, make and a C compiler.
PYTHON ?= python3
PROMPT ?= a speedboat glides right on the blue ocean
OUT    ?= out/demo.mp4
SEED   ?= 1
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The shell takes these from the environment, as they are: quotes, $ and backticks mean nothing in them.
override PROMPT := $(value PROMPT)
override OUT    := $(value OUT)
override SEED   := $(value SEED)
export PROMPT OUT SEED

.PHONY: demo test test-slow bench mini clean help

help:
	@echo "make demo       write a video for PROMPT to OUT with the shipped model (SEED to vary it)"
	@echo "make test       lint, type check and all tests"
	@echo "make test-slow  the tests that take longer: minutes each"
	@echo "make mini       train the shipped model further, until you stop it; the same command goes on"
	@echo "make bench      measure speed and memory on this machine, beside diffusers"
	@echo "make clean      remove what make made"

demo: .venv/run.done
	@printf '== generating %s: %s\n' "$$OUT" "$$PROMPT"
	@mkdir -p "$$(dirname "$$OUT")"
	@$(BIN)/cogvideox generate --seed "$$SEED" --output "$$OUT" -- "$$PROMPT"

test: .venv/dev.done
	@echo "== ruff"
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@echo "== mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "== pytest"
	@$(BIN)/python -m pytest -n 2

test-slow: .venv/dev.done
	@echo "== pytest, slow tests"
	@$(BIN)/python -m pytest -m slow

bench: .venv/dev.done
	@$(BIN)/cogvideox bench --against diffusers

mini: .venv/run.done
	@echo "== training mini further in runs/more; Ctrl-C saves and stops"
	@$(BIN)/cogvideox train recipes/mini/more.yaml --output runs/more

clean:
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/run.done: requirements/run.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@echo "== setting up .venv ($$($(PYTHON) --version))"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== installing PyTorch and the rest of requirements/run.lock"
	@$(PIP) install -r requirements/run.lock
	@$(PIP) install --no-deps -e .
	@touch $@

.venv/dev.done: requirements/dev.lock .venv/run.done
	@echo "== installing the test tools of requirements/dev.lock"
	@$(PIP) install -r requirements/dev.lock
	@touch $@
