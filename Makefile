# `make demo` and `make test` work from a clean clone with Python >= 3.11, make and a C compiler.
PYTHON ?= python3
PROMPT ?= a red racing car drives right through the desert
OUT    ?= out/demo.mp4
SEED   ?= 1
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test bench clean help

help:
	@echo "make demo   write a video for PROMPT to OUT with the shipped model (SEED to vary it)"
	@echo "make test   lint, type check and all tests"
	@echo "make bench  measure speed and memory on this machine"
	@echo "make clean  remove what make made"

demo: .venv/run.done
	@echo "== generating $(OUT): $(PROMPT)"
	@mkdir -p $(dir $(OUT))
	@$(BIN)/cogvideox generate "$(PROMPT)" --seed $(SEED) --output $(OUT)

test: .venv/dev.done
	@echo "== ruff"
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@echo "== mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "== pytest"
	@$(BIN)/python -m pytest -n 2

bench: .venv/dev.done
	@$(BIN)/python -m benchmarks.run

clean:
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/run.done: requirements/run.lock pyproject.toml
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
