# `make demo` and `make test` are all the set-up there is; both need only Python with venv and pip.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in two processes of one thread each, a file of them in one process, in their own order:
# the longest first.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
READY := .venv/.ready

.PHONY: demo test test-all check format leaderboard claims methods notebook reference figures docs clean

demo: $(READY)
	$(BIN)/python run.py -m model=mobilenet_v2 quant=rtn,adaround,flexround bits=3,2

test: $(READY)
	$(PYTEST) -m "not slow and not real_data and not slurm"

test-all: $(READY)
	$(PYTEST)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# README's tables; the runs that have no record take minutes.
leaderboard: $(READY)
	$(BIN)/python -m scripts.readme_tables

# docs/notebook/tour.ipynb from tour.py, a minute.
notebook: $(READY)
	$(BIN)/python -m scripts.notebook

# What is made of conf/: docs/reference/options.md and the defaults of flexround.quantize.
reference: $(READY)
	$(BIN)/python -m scripts.presets
	$(BIN)/python -m scripts.reference

# The verdicts on the papers' claims; ARGS=mobilenet_w2 for some, ARGS=--no-runs to compute none.
claims: $(READY)
	$(BIN)/python -m scripts.claims_page $(ARGS)

# docs/methods.md's tables of all methods under all transforms; ARGS as for claims.
methods: $(READY)
	$(BIN)/python -m scripts.methods_table $(ARGS)

figures: $(READY)
	$(BIN)/python -m scripts.figures

# The pages of docs/ as a site that loads nothing from elsewhere, in site/.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv outputs site

$(READY): pyproject.toml constraints.txt
	@echo "installing into .venv: a few minutes the first time, about 6 GB with torch"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -U pip
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $(READY)
