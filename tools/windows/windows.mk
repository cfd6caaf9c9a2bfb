# Hyper-V's side of the project: tests with a real Windows CPython under Wine. Part of the Makefile.

.PHONY: test-windows
test-windows: $(STAMP)  ## Hyper-V's side, with a Windows CPython under Wine
	tools/packages windows
	timeout --kill-after 30 3600 $(BIN)/python tools/windows/run.py $(WINDOWS_ARGS)
