"""Builds the one module. UVMSHARE_SPEED_SANITIZE=1 builds it with AddressSanitizer and UBSan, for fuzzing."""

# ruff: noqa: INP001  a distribution of its own, not a package
from __future__ import annotations

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

flags = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"]
links = ["-s"]
if os.environ.get("UVMSHARE_SPEED_SANITIZE") == "1":
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    links = ["-fsanitize=address,undefined"]

module = Extension(
    "uvmshare_speed",
    ["uvmshare_speed.pyx"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=flags,
    extra_link_args=links,
)
setup(ext_modules=cythonize([module], build_dir="build"))
