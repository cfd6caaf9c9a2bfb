# Hyper-V's side of the project: tests with a real Windows CPython under Wine. Part of the Makefile.

.PHONY: test-windows
test-windows: lint-windows  ## Hyper-V's side: types, and its tests with a Windows CPython under Wine
	tools/packages windows
	timeout --kill-after 30 3600 $(BIN)/python tools/windows/run.py $(WINDOWS_ARGS)
