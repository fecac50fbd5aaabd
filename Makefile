# `make demo` and `make test` need Python >= 3.10 with pip, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow style quality smoke bench cards docs
demo: .venv/installed
	$(BIN)/hf-methods demo

# A thread a worker, here and for the slow ones: two workers with two threads each wait for one another, and take twice as long.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# Leave the machine alone meanwhile: they are timings.
bench: .venv/installed
	$(BIN)/hf-methods bench

# The folders of model_cards/ from their weights and results.json: code, card, licence.
cards: .venv/installed
	$(BIN)/python training/render_cards.py

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

style: .venv/installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

quality: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

smoke: .venv/installed
	for config in training/*/smoke.yaml; do \
	  $(BIN)/accelerate launch --cpu --num_processes 1 $$(dirname $$config)/train.py --config $$config \
	    --output_dir $$(mktemp -d)/smoke || exit 1; \
	done

# The stamp is written last: an interrupted installation starts again.
.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("hf_methods needs Python >= 3.10" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
