# make install   a virtual environment in .venv with everything
# make demo      the main job on models/digits.onnx: prune, verify, compile for this machine, run, compare
# make test      all tests        make check   lint, format, types
# make docs      docs/_build/html; a warning is an error

PYTHON ?= python3
VENV ?= .venv
OUT ?= out
BIN = $(VENV)/bin

.PHONY: install demo test check docs clean
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

demo: install
	$(BIN)/spa prune models/digits.onnx -o $(OUT)/digits --macs 0.4 --calib models/digits.npz --target host --shape x:1,1,8,8 --force
	$(BIN)/python models/evaluate.py $(OUT)/digits
	$(BIN)/spa bench $(OUT)/digits --target host --against onnxruntime

test: install
	$(BIN)/python -m pytest -n auto

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(OUT) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
