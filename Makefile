# The two commands of a fresh machine are `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
export KEPLER_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vllm-kepler

# One environment for each lock: a changed lock makes a new one.
VENV := $(KEPLER_CACHE)/venv/$(shell sha256sum requirements/controller.txt | cut -c1-12)
READY := $(VENV)/.ready
STANDIN := PYTHONPATH=$(CURDIR)/molecule/shared $(VENV)/bin/python -m standin
export PATH := $(VENV)/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# An English UTF-8 locale: Ansible refuses others.
export LC_ALL := C.UTF-8

# A misspelled NAME=value of the command line would be a value that nobody reads.
KNOWN := ADAPTERS ARCHIVE BUNDLE HOST HOSTS MODEL PART PROFILE PYTHON STEPS
$(foreach name,$(filter-out $(KNOWN) ANSIBLE_% HF_% KEPLER_% STANDIN_% XDG_%,$(.VARIABLES)),\
  $(if $(filter command,$(firstword $(origin $(name)))),\
    $(error $(name): found it on the command line; expected one of $(KNOWN))))

.PHONY: help tools demo demo-down test lint unit kernels port gpu molecule plan bundle image compose vendor lock lock-rpms clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Order alone: a fresh clone's file is newer, and another clone may be at work with the same tools.
$(READY): | requirements/controller.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else \
	  f"PYTHON: found {sys.executable}, Python {v[0]}.{v[1]}; expected 3.11 or 3.12 (ansible-core 2.16). Run: make PYTHON=/path/to/python3.11")'
	@echo "Installing the controller's tools into $(VENV) (about a minute)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/controller.txt
	@touch $@

tools: $(READY)  ## Install the controller's tools; prints the file to source
	@echo $(VENV)/bin/activate

demo: $(READY)  ## The main job on a stand-in host: site.yml, then a served completion (MODEL=directory or name; PROFILE=volta)
	@$(STANDIN) demo --profile $(or $(PROFILE),k80)

demo-down: $(READY)  ## Remove all that the demo made, but for the download cache
	@$(STANDIN) down $(if $(filter-out k80,$(PROFILE)),demo-$(PROFILE))

test: $(READY)  ## All checks and tests, two parts at a time (PART="unit port": these alone)
	@tests/run.py $(PART)

lint: $(READY)  ## Linters and type checks
	@tests/run.py lint

unit: $(READY)  ## Unit and static tests; host code under Python 3.6 too where it is installed
	@tests/run.py unit host

kernels: $(READY)  ## The CUDA kernels: a real build for sm_37 and its report
	@tests/run.py kernels

port: $(READY)  ## The port against transformers, on PyTorch 2.0.1
	@tests/run.py port

gpu: $(READY)  ## On a machine with NVIDIA GPUs: operators, engine and benchmarks (STEPS=some of them)
	@tests/gpu.sh $(STEPS)

molecule: $(READY)  ## The stand-in hosts' scenarios: converge, idempotence, verify
	@tests/run.py default builder upgrade_rollback offline kernel_update

plan: $(READY)  ## What a model needs of a profile's GPUs, and what fits (MODEL=directory or name, ADAPTERS=, HOSTS=1, PROFILE=k80)
	@ansible-playbook playbooks/plan.yml -e plan_model="$(MODEL)" $(if $(PROFILE),-e plan_profile="$(PROFILE)") \
		$(if $(ADAPTERS),-e plan_adapters="$(ADAPTERS)") $(if $(HOSTS),-e plan_hosts="$(HOSTS)")

bundle: $(READY)  ## One file for hosts without a network, made with a connected host (BUNDLE=file, PROFILE=k80)
	@ansible-playbook playbooks/bundle.yml $(if $(BUNDLE),-e bundle_dest=$(abspath $(BUNDLE))) \
	  $(if $(PROFILE),-e bundle_profile=$(PROFILE))

image: $(READY)  ## The servers as a container image, written on a host of a profile (PROFILE=k80, HOST=name, ARCHIVE=file there)
	@ansible-playbook playbooks/image.yml $(if $(PROFILE),-e image_profile=$(PROFILE)) $(if $(HOST),-e image_host=$(HOST)) \
	  $(if $(ARCHIVE),-e image_archive=$(ARCHIVE))

compose: $(READY)  ## Compose projects and units of podman of the inventory's instances, into build/compose
	@ansible-playbook playbooks/compose.yml

vendor: $(READY)  ## Lay vLLM's pinned sdist, verified, into vllm_src/upstream
	@python vllm_src/vendor.py

lock: $(READY)  ## Make the hash locks anew from their .in files
	@python files/lock/refresh.py --downloads $(KEPLER_CACHE)/lock

lock-rpms: $(READY)  ## Renew the lock of packages by what a host's repositories offer (HOST=k80-1)
	@ansible-playbook playbooks/lock_rpms.yml --diff -e lock_host="$(HOST)"

clean:  ## Remove the caches of the tools from the clone
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .ansible
