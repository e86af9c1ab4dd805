# sdshim: `make help` lists what there is. demo and test install what they need themselves.

SHELL := /bin/sh
PYTHON ?= /usr/bin/python3
VENV := .venv
PY := $(VENV)/bin/python
PREFIX ?= /usr/local
DESTDIR ?=
ROOT ?= self
CGROUP ?= v2
HOSTS ?= self/v2
DEMO_HOST ?= booted
N ?= 20
HOURS ?= 2
SEED ?= 1
FORM ?= full
TARGET ?= frames
SECONDS ?= 60
PYTEST ?= $(PY) -m pytest

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

deps: $(VENV)/ready ## apt packages and the virtual environment (quick the second time)

$(VENV)/ready: pyproject.toml tests/host/packages.py
	@$(PYTHON) -m tests.host --install-packages
	@echo "==> virtual environment $(VENV)"
	@$(PYTHON) -m venv --system-site-packages $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: deps ## a container as a systemd unit, its status, its exit, its trace
	@$(PY) -m tests.demo --host $(DEMO_HOST) --root $(ROOT) --cgroup $(CGROUP)

lint: deps ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy sdshim tests

unit: deps ## unit tests: pure, seconds, no root
	$(PYTEST) tests/unit

system: deps ## system and fault tests (HOSTS=self/v2,self/v1,trixie/v2,trixie/v1,forky/v2,mixed/v1)
	$(PYTEST) tests/system tests/fault --hosts $(HOSTS)

test: lint ## lint, unit tests, system tests on this machine's own root
	$(PYTEST) tests/unit tests/system tests/fault --hosts $(HOSTS)

bench: deps ## sdshim against io.containerd.runc.v2, interleaved, as ratios (N=rounds)
	@$(PY) -m tests.bench --root $(ROOT) --cgroup $(CGROUP) --rounds $(N)

recovery: deps ## how soon the daemon is back after a SIGKILL, with 200 containers, and the pause clients see (ROOT, CGROUP)
	@$(PY) -m tests.bench.recovery --root $(ROOT) --cgroup $(CGROUP)

compare: deps ## the same scenarios against io.containerd.runc.v2 and sdshim (ROOT, CGROUP)
	@$(PY) -m tests.compare --root $(ROOT) --cgroup $(CGROUP)

points: deps ## three deaths in a row at each crash point of each operation (HOSTS, FORM=full or brief)
	SDSHIM_POINTS=$(FORM) $(PYTEST) tests/fault/test_points.py -s -rN -k three --hosts $(HOSTS)

exits: deps ## N one-millisecond containers and execs: no exit lost or wrong (N=2000)
	@$(PY) -m tests.bench.exits --root $(ROOT) --cgroup $(CGROUP) -n $(N)

races: deps ## N starts of execs against the exit of their container (ROOT, CGROUP, N=500)
	@SDSHIM_RACES=$(N) $(PYTEST) -q -s tests/system/test_verbs.py -k races --hosts $(ROOT)/$(CGROUP)

flood: deps ## what task calls feel of 20 containers that flood the journal (ROOT, CGROUP)
	@$(PY) -m tests.bench.flood --root $(ROOT) --cgroup $(CGROUP)

fault: deps ## kills and restarts of every part under load, counted: minutes (ROOT, CGROUP, SEED)
	@$(PY) -m tests.fault --root $(ROOT) --cgroup $(CGROUP) --seed $(SEED)

soak: deps ## hours of mixed load: memory, descriptors, units and files stay what they are (HOURS=2)
	@$(PY) -m tests.fault.soak --root $(ROOT) --cgroup $(CGROUP) --hours $(HOURS)

fuzz: deps ## fuzz what the daemon reads (TARGET=frames|requests|options|spec|state|bus, SECONDS)
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]' || \
		echo 'no atheris for this Python: the inputs will not be guided by coverage'
	@$(PY) -m tests.fuzz $(TARGET) --seconds $(SECONDS)

emulated: deps ## system tests on an emulated machine whose cgroup v2 has controllers
	@$(PY) -m tests.emulated

host: deps ## a shell on a booted host
	@$(PY) -m tests.host --root $(ROOT) --cgroup $(CGROUP)

proto: ## generate sdshim/pb from proto/
	proto/generate

install: ## install on this system (PREFIX, DESTDIR)
	packaging/install.sh --prefix $(PREFIX) $(if $(DESTDIR),--destdir $(DESTDIR))

uninstall: ## remove what install put there
	packaging/install.sh --uninstall --prefix $(PREFIX) $(if $(DESTDIR),--destdir $(DESTDIR))

clean: ## the virtual environment and caches of tools (host roots: python -m tests.host --clean)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

.PHONY: help deps demo lint unit system test bench recovery compare exits races flood points fault soak fuzz emulated host proto install uninstall clean
