# `make help` lists the targets. Everything happens in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
PHOTOS   ?= outputs/prior/photographs
RUN      ?= outputs/prior/run
TESTSETS ?= outputs/prior/testsets
ROOT     ?= data

.DEFAULT_GOAL := help
.PHONY: help demo prior test test-integration test-slow lint fmt type docs systems bench gpu compare-quick study-solvers study-samplers study-swiss-roll study-rivals-points study-rivals study-embedding-size study-langevin study-claims study-claims-images study-memorisation study-ssim-stopping study-hypotheses study-stack gallery clean install

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("scoreexp needs Python >= 3.11, this is " + sys.version.split()[0] + ": set PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and by its exact version, so that no other package chooses a build of it
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	@touch $@

install: $(READY)  ## create .venv with the pinned dependencies

demo: $(READY)  ## train on a bundled photograph and show the result (under a minute on 2 cores)
	$(BIN)/python -m scoreexp.train experiment=photo32_ours

gallery: $(READY)  ## the pictures of docs/gallery.md and the table of the README (about 3 minutes of one core)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gallery

prior: $(READY)  ## train the bundled prior again (PHOTOS, RUN: folders; TESTSETS: what it must not have seen; hours)
	$(BIN)/python -m benchmarks.prior fetch $(PHOTOS)
	$(BIN)/python -m benchmarks.prior check $(PHOTOS) $(TESTSETS)
	$(BIN)/python -m benchmarks.prior train $(PHOTOS) $(RUN)
	$(BIN)/python -m benchmarks.prior pack $(RUN)

test: $(READY)  ## the fast test suite (under 5 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-integration: $(READY)  ## whole trainings, sweeps and notebooks (about 6 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'integration and not slow'

test-slow: $(READY)  ## the slow tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: $(READY)  ## linter and formatter check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

systems: $(READY)  ## write docs/systems.md from docs/systems.toml, docstrings and yaml files
	$(BIN)/python -m benchmarks.systems

type: $(READY)  ## type-check
	$(BIN)/mypy

bench: $(READY)  ## benchmarks; results under benchmarks/results/
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.unet
	$(BIN)/python -m benchmarks.fokker_planck --json
	$(BIN)/python -m benchmarks.precompute --json
	$(BIN)/python -m benchmarks.data_loader --json
	$(BIN)/python -m benchmarks.network_cost --json
	$(BIN)/python -m benchmarks.long_run --json
	$(BIN)/python -m benchmarks.scaling --json
	$(BIN)/python -m benchmarks.noise_estimation --json

gpu: $(READY)  ## tests, U-Nets, trainings, solver and samplers on a CUDA device; results with its name (at most 8 minutes)
	$(BIN)/python -m benchmarks.gpu

compare-quick: $(READY)  ## five methods and the exact limit on one photograph, with a report (about 9 minutes on 2 cores)
	$(BIN)/python -m scoreexp.compare sweep=compare_quick

study-solvers: $(READY)  ## redo the solver study of docs/solvers.md (about half an hour)
	$(BIN)/python -m benchmarks.krylov --json
	$(BIN)/python -m benchmarks.precompute --json
	$(BIN)/python -m benchmarks.study_solvers

study-samplers: $(READY)  ## quality against network evaluations for all samplers on one trained model (about 10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study_samplers

study-swiss-roll: $(READY)  ## score error and sliced Wasserstein distance of the Swiss Roll experiments (about 15 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study_swiss_roll --json

study-rivals-points: $(READY)  ## score error and samples of every objective on the Swiss Roll at equal CPU seconds (about 2 hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study_rivals_points --json

study-rivals: $(READY)  ## images of nine recipes at equal CPU seconds (ROOT: folder of mnist, cifar10, fashion; about 18 hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study_rivals --data $(ROOT) --json

study-embedding-size: $(READY)  ## score embedding on and off with 1 to 1,000 images (ROOT: holds cifar10; about a day)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study_embedding_size --data $(ROOT)/cifar10 --json

study-langevin: $(READY)  ## score CNN, Langevin and regression on held-out photographs (about 5 minutes)
	$(BIN)/python -m benchmarks.study_langevin --json --figures

study-claims: $(READY)  ## redo docs/results.md: the published claims on a photograph (about 4 hours on 2 cores)
	$(BIN)/python -m scoreexp.compare sweep=claims
	$(BIN)/python -m scoreexp.compare sweep=claims_published
	$(BIN)/python -m benchmarks.study_claims

study-claims-images: $(READY)  ## the papers' tables on their kinds of images (ROOT: cifar10, faces64, photos; about 15 hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study_claims_images --data $(ROOT)
	$(BIN)/python -m benchmarks.study_claims

study-memorisation: $(READY)  ## at which size of the training set do models of two halves agree: MNIST and CIFAR-10 below ROOT (days on 2 cores)
	$(BIN)/python -m benchmarks.study_memorisation --root $(ROOT) --json outputs/memorisation.json
	$(BIN)/python -m benchmarks.study_memorisation --table --json outputs/memorisation.json

study-ssim-stopping: $(READY)  ## does stopping on SSIM stop where the population error is least: MNIST and CIFAR-10 below ROOT (days on 2 cores)
	$(BIN)/python -m benchmarks.study_ssim_stopping --root $(ROOT) --json outputs/ssim_stopping.json
	$(BIN)/python -m benchmarks.study_ssim_stopping --table --json outputs/ssim_stopping.json

study-hypotheses: $(READY)  ## do weighted convolutions or a learned law of noise levels help: MNIST below ROOT (5 hours of one core)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study_hypotheses --root $(ROOT) --json outputs/hypotheses.json
	$(BIN)/python -m benchmarks.study_hypotheses --table --json outputs/hypotheses.json

study-stack: $(READY)  ## scoreexp against bare Lightning, Hydra and W&B, fault by fault (docs/faults.md)
	$(BIN)/python -m pytest benchmarks/stack

clean:  ## remove build products and caches; outputs/ and .venv stay
	rm -rf dist build site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
