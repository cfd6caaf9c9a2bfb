# The project's commands. `make` alone lists them.
#
# Each target sets up what it needs. The first run may fetch packages; later ones need no network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPEED := $(VENV)/.speed-installed
HAS_HEADERS := import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
RUFF := $(BIN)/ruff
MYPY := $(BIN)/mypy
COVERAGE := $(BIN)/coverage
IMPORTS_AND_PICTURES := $(BIN)/lint-imports --no-logo && $(BIN)/python tools/state_diagram.py --check && $(BIN)/python tools/map.py --check

# More arguments for pytest, such as PYTEST_ARGS='-k retried'.
PYTEST_ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) $(SPEED)  ## Make .venv with the package and everything its checks need

# hatchling and editables come first and the build is not isolated, so that a changed pyproject.toml
# is installed again without the network.
$(STAMP): pyproject.toml
	tools/packages venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "uvmshare needs Python 3.11 or later; set PYTHON=")'
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip --quiet --disable-pip-version-check install 'hatchling>=1.25' 'editables>=0.5'
	$(BIN)/python -m pip --quiet --disable-pip-version-check install --no-build-isolation --editable '.[dev]'
	@touch $@

# The compiled hot path, where there is a compiler and Python's headers. Without them everything works in Python, and the
# next run tries again.
$(SPEED): $(STAMP) native/uvmshare_speed.pyx native/setup.py native/pyproject.toml
	@if command -v cc >/dev/null && $(BIN)/python -c '$(HAS_HEADERS)'; then \
		$(BIN)/python -m pip --quiet --disable-pip-version-check install 'cython>=3.1' 'setuptools>=65' wheel && \
		$(BIN)/python -m pip --quiet --disable-pip-version-check install --no-build-isolation --no-deps ./native && \
		touch $@; \
	else \
		echo "make: no C compiler, or no headers of this Python: the hot path stays Python (docs/performance.md)" >&2; \
	fi

# The file server, the daemon, the guest's agent and what is held against them run on Linux alone; elsewhere only what
# imports them is looked at.
ON_WINDOWS := --platform win32 --cache-dir .mypy_cache/win32 --follow-imports silent \
	--exclude '/(reliability|fileserver|conformance|daemon|dashboard|agent|linux|docs|stranger|etcd|fleet|fleet_sockets)/' --exclude '/guest/(agent|check|keepalive|loop|pinning|mount_paths|pins|repeating|session|survey|table|watches|work|test_agent|test_shell_agent|test_snapshot|vsock_driver|vsock_server|test_vsock_device|test_vsock_end|test_vsock_guest|test_vsock_server|test_events)|demo/(fleet|machines|stage)|testing/(vhost_user|vsock)' \
	--exclude '/(hostfiles|peers|forked|refusing|zygote|test_host_files|test_other_users_on_loopback|test_reach_of_root|test_users_of_the_daemon|test_groups|test_blocking_mounts|test_doctor|test_reserved_user)\.py'

.PHONY: lint
lint: $(STAMP)  ## Lint, formatting, types on Linux, import rules, generated pictures
	$(RUFF) check .
	$(RUFF) format --check .
	@# Imports and pictures meanwhile, on the other core.
	$(MYPY) & types=$$!; status=0; { $(IMPORTS_AND_PICTURES); } || status=1; wait $$types || status=1; exit $$status

.PHONY: lint-windows
lint-windows: $(STAMP)  ## Types on Windows
	$(MYPY) $(ON_WINDOWS) src tests

.PHONY: format
format: $(STAMP)  ## Format the sources and mend what the linter can mend
	$(RUFF) check --fix .
	$(RUFF) format .

.PHONY: packages
packages:
	tools/packages test

.PHONY: test
test: packages lint $(SPEED)  ## Every check and every test but the long ones
	$(BIN)/python tools/run_tests.py quick $(PYTEST_ARGS)

.PHONY: test-newer-python
test-newer-python: $(STAMP)  ## The tests of `make test` without a guest on Debian 13's Python, in a root of its own
	tools/packages newer-python
	$(BIN)/python tools/newer_python.py $(PYTEST_ARGS)

.PHONY: test-newer-python-part
test-newer-python-part: $(STAMP)  ## Those of them whose subject is what differs between Pythons
	tools/packages newer-python
	$(BIN)/python tools/newer_python.py --part $(PYTEST_ARGS)

# Measuring makes them half as slow again, and CI has no time for that.
.PHONY: coverage
coverage: packages $(STAMP) $(SPEED)  ## The tests of `make test` once more, measured: fails below the coverage that is asked for
	@$(COVERAGE) erase
	$(BIN)/python tools/run_tests.py quick --coverage $(PYTEST_ARGS)
	@$(COVERAGE) combine --quiet
	$(COVERAGE) report

.PHONY: test-long
test-long: packages $(STAMP) $(SPEED)  ## The long tests, beside each other: one to two hours
	tools/packages roots watching lintian
	$(BIN)/python tools/run_tests.py long $(PYTEST_ARGS)

.PHONY: soak
soak: packages $(STAMP) $(SPEED)  ## What takes hours: the whole conformance matrix, a million races, every kill point
	tools/packages soak
	$(BIN)/python tools/run_tests.py soak $(PYTEST_ARGS)

# What every test found stays below .cache/conformance, for the page.
.PHONY: conformance
conformance: $(STAMP)  ## Write docs/conformance.md from what the last runs of the tests found
	$(BIN)/python tools/conformance.py

FUZZ_SECONDS ?= 1800

FUZZ_STAMP := $(VENV)/.fuzz-installed

$(FUZZ_STAMP): $(STAMP)
	$(BIN)/python -m pip --quiet --disable-pip-version-check install --no-build-isolation --editable '.[cli,dev,fuzz]'
	@touch $@

.PHONY: fuzz
fuzz: $(FUZZ_STAMP) $(SPEED) fuzz-compiled  ## Fuzz the codec, the session and the agent for FUZZ_SECONDS each (1800)
	mkdir -p .cache/fuzz/codec .cache/fuzz/session .cache/fuzz/agent
	$(BIN)/python fuzz/run.py codec -max_total_time=$(FUZZ_SECONDS) .cache/fuzz/codec fuzz/corpus/codec
	$(BIN)/python fuzz/run.py session -max_total_time=$(FUZZ_SECONDS) .cache/fuzz/session fuzz/corpus/session
	$(BIN)/python fuzz/run.py agent -max_total_time=$(FUZZ_SECONDS) .cache/fuzz/agent fuzz/corpus/agent

# With gcc's AddressSanitizer and UBSan, in a process that atheris is not in.
.PHONY: fuzz-compiled
fuzz-compiled: $(SPEED)
	cd native && UVMSHARE_SPEED_SANITIZE=1 ../$(BIN)/python setup.py -q build_ext --build-lib ../.cache/fuzz/sanitized --build-temp ../.cache/fuzz/build
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		PYTHONPATH=.cache/fuzz/sanitized UVMSHARE_SPEED=required $(BIN)/python fuzz/sanitized.py $(FUZZ_SECONDS)

.PHONY: demo-fleet
demo-fleet: $(STAMP)  ## Two hosts of a fleet with a real guest each, in network namespaces; needs root
	tools/packages demo-fleet
	$(BIN)/uvmshare demo --fleet

.PHONY: demo
demo: $(STAMP)  ## Boot a real guest and share directories with it while it runs
	tools/packages demo || echo 'make demo: going on with what there is' >&2
	$(BIN)/uvmshare demo

.PHONY: bench
bench: $(STAMP) $(SPEED)  ## Measure against diod and a minimal C server, in under ten minutes (BENCH_ARGS=--quick to try)
	tools/packages bench
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

.PHONY: bench-fleet
bench-fleet: $(STAMP)  ## Measure a fleet on this machine, by hand; needs root (BENCH_ARGS="--json --quick add" to try one row)
	tools/packages demo-fleet
	$(BIN)/python -m benchmarks.fleet $(BENCH_ARGS)

.PHONY: bench-guest
bench-guest: $(STAMP) $(SPEED)  ## Compare with virtio-9p, virtiofsd and diod in a guest (BENCH_ARGS=--quick to try)
	tools/packages bench-guest
	$(BIN)/python -m benchmarks.guest_peers $(BENCH_ARGS)

.PHONY: bench-events
bench-events: $(STAMP) $(SPEED)  ## Measure events in a guest: how late, a large checkout, idling (BENCH_ARGS="--quick latency" to try)
	tools/packages bench-events
	$(BIN)/python -m benchmarks.events $(BENCH_ARGS)

.PHONY: docs
docs: $(STAMP)  ## Build the site into build/site; `make docs-serve` shows it at 127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

.PHONY: docs-serve
docs-serve: $(STAMP)  ## Build the site, and show it as its pages change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

.PHONY: deb
deb:  ## Build a Debian package into dist/: the command, the daemon and its units
	tools/packages deb
	contrib/debian/build dist

.PHONY: dist
dist: $(STAMP)  ## Build a wheel and an sdist into dist/, and check them
	rm -f dist/uvmshare-*.whl dist/uvmshare-*.tar.gz
	$(BIN)/python -m hatchling build --directory dist
	$(BIN)/python -m twine check --strict dist/uvmshare-*.whl dist/uvmshare-*.tar.gz

.PHONY: man
man: $(STAMP)  ## Write the manual pages to dist/man, one for each command
	$(BIN)/python tools/manpages.py dist/man

.PHONY: clean
clean:  ## Remove everything that was made, the downloads in .cache too
	rm -rf $(VENV) .cache .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests tools -name __pycache__ -prune -exec rm -rf {} +

# Hyper-V's side has its own commands (make test-windows).
-include tools/windows/windows.mk
