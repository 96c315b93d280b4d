# What is done often. PYTHON chooses the environment: make test PYTHON=.venv/bin/python
PYTHON ?= python

.PHONY: help test slow lint types docs clean

help:
	@echo "make test    the fast tests, as for every commit"
	@echo "make slow    the others, the tutorial and the doctests with weights among them"
	@echo "make lint    ruff: rules and format"
	@echo "make types   pyright"
	@echo "make docs    the site, in docs/_build/html; a warning is an error"
	@echo "make clean   remove what these have written"

test:
	$(PYTHON) -m pytest -n 2 -m "not slow"

slow:
	$(PYTHON) -m pytest -m slow

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m pyright --pythonpath "$$(command -v $(PYTHON))"

docs:
	$(PYTHON) -m sphinx -b html -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf docs/_build .pytest_cache .ruff_cache .hypothesis
