# Every target does all the set-up it needs: `make help`.
#
# Variables: STACK=onedl | openmmlab      the set of OpenMMLab packages, each in an environment folder of its own
#            PYTHON=/path/to/python3.11   the Python of that environment (default: the first that suits)
#            HASHES=1 | 0                 always or never check the hashes of what is installed (default: docs/setup.md)
#            SEED=0                       of the demos
#            DEMO_DIR=work_dirs/demo      the folder that `make demo` writes to; the others append -segmentation
#                                         and -classification
#            MAX_JOBS=1                   compilers at once, where mmcv's operators have to be compiled
# pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) apply. On a machine without a GPU
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
# saves gigabytes: the pins accept 2.11.0+cpu for torch==2.11.0. Its hashes are not in constraints/*.lock.txt, so then none
# are checked, which the set-up says.

STACK ?= onedl
SEED ?= 0

VENV := $(if $(filter openmmlab,$(STACK)),.venv-openmmlab,.venv)
BIN := $(VENV)/bin
PY := $(BIN)/python

DEMO_CONFIG := configs/demo/mask-rcnn_smlpnet-mini_coins.py
SEGMENTATION_CONFIG := configs/demo/upernet_smlpnet-mini_coins.py
CLASSIFICATION_CONFIG := configs/demo/smlpnet-mini_photos.py
DEMO_DIR := work_dirs/demo
PICTURES := docs/images
SWEEP := --zoom 0.5 0.75 1 1.5 2 --extent 1 2 3 4 --interpolation exact bounded scaled naive

# Any Python that runs can start the set-up, which then looks for the one that suits the stack.
setup-env = for python in $(PYTHON) python3 python3.12 python3.11 python3.10; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && exec "$$python" tools/setup_env $(1); \
	done; echo "setup: no Python 3 runs here; apt-get install python3 python3-venv python3-dev" >&2; exit 1

.PHONY: help setup test test-all test-browser lint constraints audit demo demo-segmentation demo-classification demos ablations study bench stress clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make the virtual environment, with mmcv's operators; nothing to do the second time
	@$(call setup-env,--stack $(STACK) $(if $(PYTHON),--python $(PYTHON)) $(if $(HASHES),--hashes $(HASHES)))

test: setup ## run the tests (at most 15 minutes on 2 cores) and the linter
	$(PY) -m pytest -m "not slow and not browser"
	$(BIN)/ruff check

test-all: setup ## run every test, the slow ones too (at most 90 minutes), and the linter
	$(PY) -m pytest -m "not browser"
	$(BIN)/ruff check

test-browser: setup ## the web demo and the HTML report in headless Chromium, where there is one: work_dirs/browser
	@BROWSER_CHECKPOINT=$(DEMO_DIR) $(PY) tests/browser.py

lint: setup ## run the linter
	$(BIN)/ruff check

demo: setup ## train a Mask R-CNN on coins and evaluate it at sizes it never saw (4 minutes): work_dirs/demo
	$(PY) tools/make_coins.py data/coins
	$(PY) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR) --cfg-options randomness.seed=$(SEED)
	$(PY) tools/sweep.py $(DEMO_CONFIG) $(DEMO_DIR) $(SWEEP) --symmetries 8 --out $(DEMO_DIR)

demo-segmentation: setup ## the same with a UperNet on coins (2 minutes): work_dirs/demo-segmentation
	$(PY) tools/make_coins.py data/coins
	$(PY) tools/train.py $(SEGMENTATION_CONFIG) --work-dir $(DEMO_DIR)-segmentation \
		--cfg-options randomness.seed=$(SEED)
	$(PY) tools/sweep.py $(SEGMENTATION_CONFIG) $(DEMO_DIR)-segmentation $(SWEEP) --symmetries 8 \
		--out $(DEMO_DIR)-segmentation

demo-classification: setup ## the same with a classifier of photographs (3 minutes): work_dirs/demo-classification
	$(PY) tools/make_photos.py data/photos
	$(PY) tools/train.py $(CLASSIFICATION_CONFIG) --work-dir $(DEMO_DIR)-classification \
		--cfg-options randomness.seed=$(SEED)
	$(PY) tools/sweep.py $(CLASSIFICATION_CONFIG) $(DEMO_DIR)-classification $(SWEEP) --out $(DEMO_DIR)-classification

demos: demo demo-segmentation demo-classification ## all three demos (9 minutes); their pictures go to docs/images, for the README
	for picture in sweep predictions; do for demo in "" -segmentation -classification; do \
		cp $(DEMO_DIR)$$demo/$$picture.png $(PICTURES)/demo$$demo-$$picture.png || exit 1; done; done

ablations: setup ## train the paper's ablations, 3 seeds each (35 minutes), resumable: work_dirs/ablations
	$(PY) tools/make_photos.py data/photos
	$(PY) benchmarks/ablations.py --seeds 0 1 2
	cp work_dirs/ablations/ablations.png docs/images

study: setup ## the study of positional interpolation (2 hours), resumable: work_dirs/study and its tables and pictures in docs/
	$(PY) tools/make_coins.py data/coins
	$(PY) tools/make_photos.py data/photos
	$(PY) benchmarks/study --docs

bench: setup ## time sMLPNet beside its peers (an hour on 2 idle cores): work_dirs/bench, docs/performance.md
	$(PY) benchmarks/axis_paths.py --method bounded
	$(PY) benchmarks/speed --docs

stress: setup ## try what may go wrong, thousands of times (40 minutes beside other work): work_dirs/stress, docs/reliability.md
	$(PY) benchmarks/stress --docs

constraints: ## regenerate constraints/*.txt from setup.py (UPGRADE=1: take the newest versions)
	@$(call setup-env,--constraints $(if $(UPGRADE),--upgrade))

audit: ## list the known vulnerabilities of all pinned releases, by pip-audit; needs PyPI or osv.dev
	@$(call setup-env,--audit)

clean: ## remove the environments, build products and caches; data/ and work_dirs/ stay
	rm -rf .venv .venv-openmmlab build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
