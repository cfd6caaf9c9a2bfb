"""The pages of the site's reference, from what the program says of itself: ``python tools/reference.py DIRECTORY``.

What lives here: how help texts, the OpenAPI document, `Limits` and the list of public names become Markdown. What must
not: words about a command, a path, a limit or a class; they belong where those are.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import itertools
import json
import re
import sys
import textwrap
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin, get_type_hints

import click
import msgspec

import uvmshare
from manpages import commands
from uvmshare.cli.main import cli
from uvmshare.daemon import documents
from uvmshare.fileserver import limits as limits_module
from uvmshare.fileserver.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_GENERATED: Final = "This page is generated from what the program says of itself.\n"


def pages() -> dict[str, str]:
    """Return every page of the reference by its file name."""
    return {"cli.md": command_line(), "http.md": http(), "python.md": python(), "limits.md": limits()}


# ---------------------------------------------------------------- the command line


def command_line() -> str:
    """Return the page of every command, from its help text."""
    context = click.Context(cli, info_name="uvmshare", **cli.context_settings)
    parts = ["# Command line\n", _GENERATED, "`uvmshare COMMAND --help` says the same in a terminal.\n"]
    for command, own in commands(cli, context):
        parts.append(f"## {own.command_path}\n")
        if command.add_help_option:
            parts += _described(command, own)
        else:  # it reads its arguments itself
            parts.append(f"```text\n{_own_help(command, own)}\n```\n")
    return "\n".join(parts)


def _described(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        kept = paragraph.strip("\n")
        if kept.startswith("\b"):
            yield f"```text\n{textwrap.dedent(kept.partition(chr(10))[2])}\n```\n"
        else:
            yield f"{_text(' '.join(kept.split()))}\n"
    records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    if records:
        yield "| Option | What it does |\n| --- | --- |"
        yield "".join(f"| `{_cell(name)}` | {_cell(_text(' '.join(words.split())))} |\n" for name, words in records)


def _own_help(command: click.Command, context: click.Context) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        assert command.callback is not None
        with context.scope():
            command.callback(arguments=("--help",))
    return printed.getvalue().strip()


def _text(text: str) -> str:
    """Return words of a help text as Markdown that shows just these."""
    for mark in "\\`*_[]<>$":
        text = text.replace(mark, f"\\{mark}")
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---------------------------------------------------------------- the HTTP API


def openapi() -> dict[str, Any]:
    """Return the document that the daemon answers at ``/v1/openapi.json``."""
    from uvmshare.daemon.app import make_app  # noqa: PLC0415  the other pages do without the daemon's packages
    from uvmshare.daemon.documents import REQUESTS  # noqa: PLC0415  as above

    nobody: Any = None  # is served
    document: dict[str, Any] = make_app(nobody, None).openapi_schema.to_schema()
    _, requests = msgspec.json.schema_components(REQUESTS, ref_template="#/components/schemas/{name}")
    document["components"]["schemas"].update(requests)
    return document


def http() -> str:
    """Return the page of every path, from the OpenAPI document."""
    document = openapi()
    parts = [
        "# HTTP API\n",
        f"{_GENERATED}The daemon has the same as an OpenAPI document at `/v1/openapi.json`.\n",
        f"{document['info'].get('description', '')}\n",
    ]
    everywhere = set.intersection(
        *(set(_answers(operation)) for methods in document["paths"].values() for operation in methods.values())
    )
    parts += ["## Errors of every path\n", _table("| Status | Answer |", everywhere)]
    for path, methods in sorted(document["paths"].items()):
        for method, operation in methods.items():
            parts.append(f"## {method.upper()} {path}\n")
            parts.append(f"{operation.get('description') or operation.get('summary', '')}\n")
            if parameters := operation.get("parameters"):
                parts.append("| Parameter | In | Type | |\n| --- | --- | --- | --- |")
                parts.append(
                    "".join(
                        f"| `{each['name']}`{' (required)' if each.get('required') else ''} | {each['in']} "
                        f"| {_type(each.get('schema', {}))} | {_cell(each.get('description', ''))} |\n"
                        for each in parameters
                    )
                )
            if body := operation.get("requestBody"):
                parts.append(f"Body: {_contents(body)}\n")
            parts.append(_table("| Status | Answer |", set(_answers(operation)) - everywhere))
    parts.append("## Documents\n")
    told = meanings(documents)
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += [
            f"### {name}\n",
            f"{_cell(schema.get('description') or _meant(name))}\n",
            _fields(schema, told.get(name, {})),
        ]
    return "\n".join(parts)


def _meant(name: str) -> str:
    """Return what the class of a document says of itself."""
    return " ".join((getattr(getattr(documents, name, None), "__doc__", None) or "").split())


def _answers(operation: dict[str, Any]) -> list[str]:
    return [
        f"| {status} | {' '.join(filter(None, (_said(status, answer), _contents(answer))))} |"
        for status, answer in operation["responses"].items()
    ]


def _said(status: str, answer: dict[str, Any]) -> str:
    """Return what the API says of an answer; nothing for the words that HTTP has for every answer of this status."""
    said = " ".join((answer.get("description") or "").split())
    return "" if said == HTTPStatus(int(status)).description else _cell(said)


def _table(head: str, rows: set[str]) -> str:
    return "\n".join([head, re.sub(r"[^|]+", " --- ", head), *sorted(rows)]) + "\n"


def _fields(schema: dict[str, Any], told: dict[str, str]) -> str:
    """Return the fields of a document, each with its description, or with what stands below it where it is defined."""
    rows = [
        f"| `{name}`{' (required)' if name in schema.get('required', []) else ''} | {_type(field)} "
        f"| {_cell(' '.join(str(field.get('description') or told.get(name, '')).split()))} |\n"
        for name, field in schema.get("properties", {}).items()
    ]
    return "| Field | Type | |\n| --- | --- | --- |\n" + "".join(rows) if rows else f"{_type(schema)}\n"


def _contents(holder: dict[str, Any]) -> str:
    contents = holder.get("content") or {}
    return ", ".join(f"{_type(each.get('schema', {}))} (`{kind}`)" for kind, each in contents.items())


_BOUNDS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "maxProperties": "at most {} of them",
    "pattern": "pattern `{}`",
    "default": "`{}` unless given",
}


def _type(schema: dict[str, Any]) -> str:
    """Return what a schema asks for, in words, as a cell of a table."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(each) for each in schema[key]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join("null" if value is None else f"`{value}`" for value in values)
    kind = schema.get("type", "anything")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if kind == "array":
        kind = f"array of {_type(schema.get('items', {}))}"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        kind = f"object of {_type(schema['additionalProperties'])}"
    bounds = [
        words.format(json.dumps(schema[key]) if key == "default" else schema[key])
        for key, words in _BOUNDS.items()
        if schema.get(key) not in (None, "")
    ]
    return _cell("; ".join([kind, *bounds]))


# ---------------------------------------------------------------- Python


def python() -> str:
    """Return the page of every public name, from most to least important; mkdocstrings fills it from the docstrings."""
    parts = ["# Python API\n", _GENERATED, f"{inspect.cleandoc(uvmshare.__doc__ or '').partition(chr(10))[0]}\n"]
    parts.append(
        "Everything on this page is importable from `uvmshare`, and what is at its end from `uvmshare.blocking`.\n"
    )
    names = [getattr(uvmshare, name) for name in uvmshare.__all__]
    names += [getattr(module, name) for module in names if inspect.ismodule(module) for name in module.__all__]
    parts.extend(
        f"::: {found.__module__}.{found.__qualname__}\n    options:\n      heading_level: 2\n"
        for found in names
        if hasattr(found, "__module__")
    )
    return "\n".join(parts)


# ---------------------------------------------------------------- limits


_HOW_TO_LIMIT: Final = (
    "`uvmshare serve --limit NAME=NUMBER` and `uvmshare vm add --limit NAME=NUMBER` change one, as `limits=` of "
    "`FileServer` does. `none` lifts what may be lifted.\n"
)


def limits() -> str:
    """Return the page of every `--limit`, from the class that reads them."""
    parts = [
        "# Limits\n",
        _GENERATED,
        _HOW_TO_LIMIT,
        "| Name | Unit | Default | May be | What it bounds |\n| --- | --- | --- | --- | --- |",
    ]
    told = meanings(limits_module)["Limits"]
    hints = get_type_hints(Limits, include_extras=True)
    for field in msgspec.structs.fields(Limits):
        hint = hints[field.name]
        default = "none" if field.default is None else str(field.default).lower()
        parts.append(
            f"| `{field.name}` | {unit(field.name, hint)} | {default} | {_range(hint)} | {_cell(told[field.name])} |"
        )
    return "\n".join(parts) + "\n"


def meanings(module: ModuleType) -> dict[str, dict[str, str]]:
    """Return what stands below the fields of each class of a module where they are defined."""
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = {}
    for defined in tree.body:
        if not isinstance(defined, ast.ClassDef):
            continue
        for node, after in itertools.pairwise(defined.body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                assert isinstance(after.value, ast.Constant)
                found.setdefault(defined.name, {})[node.target.id] = " ".join(str(after.value.value).split())
    return found


def unit(name: str, hint: Any) -> str:
    """Return the unit of a limit, which its name ends in."""
    if bool in (hint, *get_args(hint)):
        return "yes or no"
    for end, word in {
        "bytes_per_second": "bytes a second",
        "operations_per_second": "requests a second",
        "_bytes": "bytes",
        "_seconds": "seconds",
        "msize": "bytes",
    }.items():
        if name.endswith(end):
            return word
    return "count"


def _range(hint: Any) -> str:
    parts = get_args(hint) if get_origin(hint) is not None and not hasattr(hint, "__metadata__") else (hint,)
    said = []
    for part in parts:
        for meta in getattr(part, "__metadata__", ()):
            low = f"more than {meta.gt}" if meta.gt is not None else f"{meta.ge:,}"
            high = "" if meta.le is None or meta.le >= 1 << 62 else f" to {meta.le:,}"
            said.append(f"{low}{high}" if high or meta.gt is not None else f"{low} or more")
    if type(None) in parts:
        said.append("`none`")
    return ", ".join(said) or "`true`, `false`"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    for page, content in pages().items():
        Path(sys.argv[1], page).write_text(content, encoding="utf-8")
