# Every target sets up .venv by itself when it is missing or the lock has changed.
#   make demo   train on the sample data, evaluate, predict: see runs/demo
#   make test   the tests            make test-slow   those that take minutes, too
#   make test-pythons  the tests under each Python found (PYTHONS="python3.12 ...")
#   make check  format, lint, types  make lock        newest versions into the lock
# EXTRA=cuda12 (or cuda13) installs the GPU build; PYTHON=python3.12 picks another Python.
PYTHON ?= python3
EXTRA ?=
VENV ?= .venv
RUN = $(VENV)/bin/python
READY = $(VENV)/ready$(if $(EXTRA),-$(EXTRA))
# Files of tests go to two processes: compiling and small arrays keep one core busy each.
# In the order of tests/conftest.py, the slow ones first.
PARALLEL = --numprocesses=2 --dist=loadfile --no-loadscope-reorder
LOCK = requirements$(if $(EXTRA),-$(EXTRA)).lock

PYTHONS ?= python3.11 python3.12 python3.13 python3.14

.PHONY: setup demo test test-slow test-pythons check lock clean

setup: $(READY)

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit('Python 3.11 or later is needed; this is %d.%d. Use make PYTHON=...' % sys.version_info[:2] if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --require-hashes -r $(LOCK)
	# Both OpenCV wheels write one cv2 folder. The headless one goes last, so that cv2
	# needs no window libraries, which slim systems lack.
	grep -A 12 '^opencv-python-headless==' $(LOCK) | sed '/^    #/,$$d' > $(VENV)/cv2.lock
	$(RUN) -m pip install --quiet --require-hashes --force-reinstall --no-deps -r $(VENV)/cv2.lock
	$(RUN) -m pip install --quiet --no-deps --editable .
	$(RUN) -m experiments.doctor
	touch $(READY)

demo: $(READY)
	$(RUN) -m experiments.train --flagfile=experiments/flagfiles/demo.flags --workdir=runs/demo
	$(RUN) -m experiments.evaluate --checkpoint=runs/demo
	$(RUN) -m experiments.predict --checkpoint=runs/demo --input=experiments/sample_data/images --output=runs/demo/predictions

test: $(READY)
	$(RUN) -m pytest $(PARALLEL)

test-slow: $(READY)
	$(RUN) -m pytest $(PARALLEL) -m "not gpu"

# Each Python has versions of its own: 3.11 stays with jax 0.10, later ones go on.
test-pythons:
	@for python in $(PYTHONS); do \
	  if $$python -c "" 2> /dev/null; then \
	    echo "== $$python"; $(MAKE) test PYTHON=$$python VENV=.venv-$$python || exit 1; \
	  else echo "== $$python: not here"; fi; done

check: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	$(RUN) -m pytest tests/test_layering.py

lock: $(READY)
	$(RUN) -m pip install --quiet uv
	cd $(CURDIR) && for extra in "" cuda12 cuda13; do \
	  $(RUN) -m uv pip compile --quiet --upgrade --universal --generate-hashes --no-header \
	    --python-version 3.11 --extra dev $${extra:+--extra $$extra} pyproject.toml \
	    -o requirements$${extra:+-$$extra}.lock > /dev/null; done

clean:
	rm -rf $(VENV) runs
