# One command for each thing; CI runs the same ones. `make help` lists them.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

# What the lab, the bench and the tests call. wireguard-tools' recommends pull a kernel: hence --no-install-recommends.
PACKAGES := wireguard-tools wireguard-go nftables iproute2 iperf3 iputils-ping traceroute bind9-dnsutils curl tcpdump procps tshark coturn

# The suites that run a second time with every kernel interpreted (those that exist).
INTERPRETED := $(wildcard tests/test_prefixes.py tests/packet tests/nat tests/policy tests/wireguard tests/dataplane tests/fuzz tests/security)

# Coverage-guided fuzzing: which targets (all that have a corpus), and how long each.
FUZZ ?= $(notdir $(wildcard tests/fuzz/corpus/*))
FUZZ_SECONDS ?= 300

.DEFAULT_GOAL := help
.PHONY: help setup packages lint types layers check test fuzz demo bench docs format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.installed packages ## .venv/ with the egressvpn command, and the Debian packages that the lab needs (as root)

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "egressvpn needs Python 3.11 or newer; name one with PYTHON=" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python3 -m venv failed: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

packages:
	@missing=; for p in $(PACKAGES); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "not root, so these Debian packages stay missing and the lab cannot run:$$missing" >&2; exit 0; fi; \
	echo "installing:$$missing"; export DEBIAN_FRONTEND=noninteractive; \
	case "$$missing" in *coturn*) [ ! -d /run/systemd/system ] || systemctl --quiet mask coturn.service;; esac; : its tools, not its service; \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing >/dev/null

lint: .venv/.installed ## ruff: the rules of pyproject.toml and the format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.installed ## mypy --strict
	$(BIN)/mypy

layers: .venv/.installed ## imports go down the layers only
	$(BIN)/lint-imports --no-cache

check: lint types layers ## lint, types and layers

test: setup ## the whole suite: kernels interpreted, then everything compiled, then the lab (as root)
ifneq ($(INTERPRETED),)
	EGRESSVPN_JIT=0 $(BIN)/pytest -q $(INTERPRETED)
endif
	$(BIN)/pytest

fuzz: .venv/.installed ## look for inputs that break a parser, 300 s each; FUZZ="headers nat" FUZZ_SECONDS=60 chooses
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	@mkdir -p .fuzz; failed=; for target in $(FUZZ); do \
		$(BIN)/python -m tests.fuzz $$target .fuzz/$$target -max_total_time=$(FUZZ_SECONDS) >.fuzz/$$target.log 2>&1 || failed="$$failed $$target"; \
		printf '%-26s %s\n' $$target "$$(grep -aE '^#[0-9]+' .fuzz/$$target.log | tail -1)"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed, see .fuzz/TARGET.log and the input beside it:$$failed" >&2; exit 1; fi

demo: setup ## clients reach the Internet through the gateway, in network namespaces; shows what happened
	@$(MAKE) --no-print-directory -C netns-lab demo

bench: setup ## this gateway against wireguard-go + nftables, alternating; writes bench/results.json
	@$(MAKE) --no-print-directory -C netns-lab bench

docs: .venv/.installed ## check that every link and command in the documentation leads somewhere
	$(BIN)/pytest -q tests/test_documentation.py

format: .venv/.installed ## let ruff format and mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what make built here (and any lab left standing)
	@if [ -d /run/egressvpn-lab ] && [ -x $(BIN)/python ]; then $(MAKE) --no-print-directory -C netns-lab down; fi
	rm -rf .venv .fuzz .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist bench/results.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
