# `make demo` and `make test` create .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo demo-without-bookings notebooks test lint format docs clean

demo: $(INSTALLED)
	$(BIN)/m2m-tf run pipelines/configs/demo.yaml

demo-without-bookings: $(INSTALLED)
	$(BIN)/m2m-tf run pipelines/configs/demo_without_bookings.yaml

# notebooks/*.ipynb, to be opened where jupytext is not; git ignores them.
notebooks: $(INSTALLED)
	$(BIN)/jupytext --to ipynb notebooks/*.py

# Two processes of a thread each on two cores: six sevenths of the time that
# they take with two threads each.
test: export OMP_NUM_THREADS = 1
test: export TF_NUM_INTRAOP_THREADS = 1
test: export TF_NUM_INTEROP_THREADS = 1
test: $(INSTALLED) lint
	$(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in site/index.html; any web server shows it.
docs: $(INSTALLED)
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --clean --strict

# The stamp is older than setup.py when a dependency has changed.
$(INSTALLED): setup.py
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[demo,docs,lightgbm,notebooks,serve,test]'
	touch $(INSTALLED)

clean:
	rm -rf .venv build dist site *.egg-info
