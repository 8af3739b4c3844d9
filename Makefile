# Six verbs; nothing else.
PYTHON ?= python

.PHONY: fix check test gpu bench docs

fix:  ## format, and mend what can be mended
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

check:  ## format, lint, types, layers; a table of sizes
	$(PYTHON) tests/house/check.py

test:  ## everything that runs on a CPU
	$(PYTHON) -m pytest

gpu:  ## what needs a CUDA device; skipped, with the reason, where there is none
	$(PYTHON) -m pytest -m gpu

bench:  ## host cost per row, workloads of the default model, its perplexity; minutes on a CPU
	$(PYTHON) -m headrace bench host
	$(PYTHON) -m headrace bench throughput single prefill
	$(PYTHON) -m headrace eval perplexity

docs:  ## write the pages that are made from the code: docs/knobs.md, docs/commands.md
	$(PYTHON) docs/generate.py
