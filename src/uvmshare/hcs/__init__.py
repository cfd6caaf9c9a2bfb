"""The Host Compute Service: its documents, and (on Windows) the binding to computecore.dll."""
