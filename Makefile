# `make` alone lists the verbs. `make book` and `make test` need nothing but a Python.
PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup book test test-mutants test-full test-engines site-test pdf bench lint lab notebooks lock clean
SITE := --config-file=tests/site/pytest.ini --rootdir=tests/site tests/site
PYTEST := $(PYTHON) -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile

help:        ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:       ## put the locked packages into .venv (done by the verbs below when needed)
	@sh tools/setup.sh

book: setup  ## execute the chapters and build the HTML book in _build/html
	@$(PYTHON) tools/build.py

test: setup  ## run the tests (minutes), and measure what they reach of mlm_utils
	@$(PYTEST) --cov

test-mutants: setup ## plant every bug of data/planted_bugs.toml and see its test fail
	@$(PYTHON) tools/mutants.py

test-full: test-mutants ## run every test: all calibrations, the whole book twice, all planted bugs
	@$(PYTEST) -m ""

test-engines: setup ## test what the other engines and Spark are given, in benchmarks/.venv
	@sh benchmarks/setup.sh
	@cd benchmarks && .venv/bin/python -m pytest -q --config-file=/dev/null --rootdir=. tests

site-test: setup ## test the built site, its explorers and notebooks in a browser (after make book)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" npm ci --prefix tests/site --ignore-scripts --no-audit --no-fund --silent
	@$(PYTEST) --dist=load $(SITE) --ignore=tests/site/test_lighthouse.py
	@$(PYTHON) -m pytest $(SITE)/test_lighthouse.py

pdf: setup   ## print the whole book as one PDF in _build (after make book)
	@$(PYTHON) tools/pdf.py

bench: setup ## measure this book's fits beside other engines, and rows, machines, guides
	@sh benchmarks/setup.sh
	@benchmarks/.venv/bin/python benchmarks/run.py
	@for name in rows sharding approximation; do $(PYTHON) benchmarks/$$name.py || exit; done

lint: setup  ## check the style of code and chapters
	@$(PYTHON) tools/lint.py

lab: setup   ## open the chapters as notebooks in JupyterLab
	@$(PYTHON) tools/lab.py

notebooks: setup ## write every chapter as .ipynb into notebooks/
	@$(PYTHON) tools/notebooks.py

lock: setup  ## work out requirements.lock anew from pyproject.toml
	@.venv/bin/uv pip compile pyproject.toml --quiet --all-extras --universal --generate-hashes \
	  --no-emit-index-url --no-header --upgrade --output-file requirements.lock

clean:       ## remove what was built, keeping .venv
	@rm -rf _build dist notebooks
