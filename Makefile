# Every target sets up .venv by itself when it is missing or the lock has changed.
#   make setup  no more than that
#   make demo   train on the sample data, evaluate, predict: see runs/demo
#   make test   the tests            make test-slow   those that take minutes, too
#   make test-pythons  the tests under each Python found (PYTHONS="python3.12 ...")
#   make test-minimum  the tests with the oldest versions that pyproject.toml allows
#   make check  format, lint, types  make lock        newest versions into the lock
#   make clean  removes what set-up installed; runs/ stays
# make lock UPGRADE= keeps the versions that pyproject.toml still allows.
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
OLDEST ?= python3.11
MINIMUM = .venv-minimum
UPGRADE ?= --upgrade

.PHONY: setup demo test test-slow test-pythons test-minimum check lock clean

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
	@passed= failed=; for python in $(PYTHONS); do \
	  if ! $$python -c "" 2> /dev/null; then echo "== $$python: not here"; continue; fi; \
	  echo "== $$python"; \
	  if $(MAKE) test PYTHON=$$python VENV=.venv-$$(basename $$python); \
	  then passed="$$passed $$python"; else failed="$$failed $$python"; fi; done; \
	echo "== passed:$$passed; failed:$$failed"; test -n "$$passed" -a -z "$$failed"

# What pyproject.toml names is as old as it allows; what that needs in turn is as new as
# it can be, since few packages know their own oldest versions.
test-minimum:
	$(OLDEST) -m venv $(MINIMUM)
	$(MINIMUM)/bin/python -m pip install --quiet uv
	$(MINIMUM)/bin/python -m uv pip compile --quiet --upgrade --generate-hashes --no-header \
	  --resolution lowest-direct --python $(MINIMUM)/bin/python --extra dev pyproject.toml \
	  -o $(MINIMUM)/requirements.lock > /dev/null
	$(MAKE) test PYTHON=$(OLDEST) VENV=$(MINIMUM) LOCK=$(MINIMUM)/requirements.lock EXTRA=

check: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright
	$(RUN) -m pytest tests/test_layering.py

lock: $(READY)
	$(RUN) -m pip install --quiet uv
	cd $(CURDIR) && for extra in "" cuda12 cuda13; do \
	  $(RUN) -m uv pip compile --quiet $(UPGRADE) --universal --generate-hashes --no-header \
	    --python-version 3.11 --extra dev $${extra:+--extra $$extra} pyproject.toml \
	    -o requirements$${extra:+-$$extra}.lock > /dev/null; done

clean:
	rm -rf $(VENV) .venv-*
