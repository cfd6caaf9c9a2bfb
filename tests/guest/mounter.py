"""Runs in a guest: mounts what it is asked for through one pipe and tells through another how that went.

``mounter.py MOUNT_PY REQUESTS ANSWERS``. A request is what mount.py's command line has, an answer its exit status and
what it said. Starting Python takes an emulated guest half a second, and tests mount often.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys


def main(program: str, requests: str, answers: str) -> None:
    spec = importlib.util.spec_from_file_location("mount", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    while True:
        with open(requests, encoding="utf-8") as asked:
            arguments = asked.read().split()
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                status = module.main(arguments)
            except SystemExit as error:
                status = error.code
        with open(answers, "w", encoding="utf-8") as told:
            told.write(f"{status} {said.getvalue().strip()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
