"""Answers to commands and options that do not exist: what the user may have meant.

What lives here: words that other tools use, and what they are called here. What must not: what a command does.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

import click

__all__ = ["is_path", "what_a_path_was_meant_for", "what_was_meant"]

_MAP: Final = "map (the host asks the guest's agent), or inside a guest `guest mount`"
_SERVE: Final = "serve (one VM, in the foreground), or daemon (all VMs of the host)"
_COMMANDS: Final = {
    **dict.fromkeys(("attach", "bind", "mount", "mount.9p", "volume"), _MAP),
    **dict.fromkeys(("detach", "umount", "unmount", "unbind"), "unmap"),
    **dict.fromkeys(("run", "start", "up", "launch", "listen", "export", "virtiofsd", "diod", "server"), _SERVE),
    **dict.fromkeys(("add", "create", "new"), "share add, or vm add"),
    **dict.fromkeys(("rm", "remove", "delete", "del", "stop", "down", "kill", "prune"), "share rm, or vm rm"),
    **dict.fromkeys(("ls", "list"), "vm ls, share ls, or mounts"),
    **dict.fromkeys(("ps", "vms", "machine", "machines", "instances"), "vm ls, or mounts"),
    **dict.fromkeys(("shares", "exports", "volumes"), "share ls"),
    **dict.fromkeys(("owners", "holders", "leases"), "owner ls"),
    **dict.fromkeys(("release", "free"), "share rm, or owner release"),
    **dict.fromkeys(("renew", "extend", "keepalive"), "share renew"),
    **dict.fromkeys(("inspect", "show", "get", "describe"), "share inspect, or vm inspect"),
    **dict.fromkeys(("log", "logs", "monitor", "watch"), "events, or top"),
    **dict.fromkeys(("info", "check", "diagnose"), "doctor, or vm ls"),
    **dict.fromkeys(("healthcheck", "ping", "alive"), "health, or doctor"),
    **dict.fromkeys(("shell", "exec", "ssh", "agent"), "guest agent (in the guest); no command runs programs there"),
    "status": "health, vm ls, or doctor",
    "system": "doctor, or vm ls",
    "version": "--version",
    "help": "--help",
}
_OF_GROUPS: Final = {
    **dict.fromkeys(("create", "new", "start", "run", "launch", "register"), "add"),
    **dict.fromkeys(("delete", "del", "remove", "release", "stop", "unregister", "prune"), "rm"),
    **dict.fromkeys(("get", "show", "info", "describe", "status"), "inspect"),
    **dict.fromkeys(("list", "ps", "all"), "ls"),
    **dict.fromkeys(("extend", "refresh", "keepalive"), "renew"),
    "rm": "release",
}
_OF_SHARES: Final = "a share is an argument of its own, PATH or PATH:ro; where the guest mounts it is `map`'s argument"
_READ_ONLY: Final = "write PATH:ro"
_ADDRESSES: Final = "addresses are given by --listen, such as --listen unix:/run/vm1.9p"
_OPTIONS: Final = {
    **dict.fromkeys(("-v", "--volume", "--mount", "--bind", "-e", "--shared-dir", "-virtfs", "-fsdev"), _OF_SHARES),
    **dict.fromkeys(("-p", "--port", "--socket-path", "--address", "--publish"), _ADDRESSES),
    **dict.fromkeys(("--ro", "--read-only", "--readonly", "-r"), _READ_ONLY),
    **dict.fromkeys(("-o", "-t", "--options"), "options have names of their own, such as PATH:ro or --msize"),
    **dict.fromkeys(("--name", "--tag", "--mount-tag"), "the server names shares itself, 0, 1, 2 ..., and prints them"),
    **dict.fromkeys(("-d", "--detach", "--daemonize"), "`uvmshare daemon` goes on in the background, under systemd"),
    **dict.fromkeys(("--filter", "-a", "--all", "--no-trunc"), "lists are whole; --format and --json are for programs"),
    **dict.fromkeys(("--ttl", "--timeout", "--expires"), "--lease 5m"),
    **dict.fromkeys(("--user", "--uid-map", "--translate-uid", "--userns"), "--map-owner HOST:GUEST"),
    **dict.fromkeys(("--exclude", "--ignore"), "--hide PATTERN"),
    "--allow-writes": "shares can be written to unless they are PATH:ro",
    "--host": "a server says where it listens: serve --listen, daemon --socket, gate in its file",
    "--sandbox": "file servers are confined by themselves; `uvmshare doctor` says how far this host can",
}


def what_was_meant(error: click.UsageError) -> str:
    """Return a sentence to put behind an error, with a space before it; nothing where nobody can guess."""
    if error.ctx is None or isinstance(error, click.MissingParameter):
        return _left_out(error) if isinstance(error, click.MissingParameter) else ""
    if isinstance(error, click.NoSuchOption):
        meant = _OPTIONS.get(error.option_name)
        return "" if meant is None else f" Perhaps: {meant}."
    group, wanted = error.ctx.command, re.match(r"No such command '(.*)'\.( Did you mean.*)?$", error.message)
    if wanted is None or wanted[2] or not isinstance(group, click.Group):
        return ""
    there = group.list_commands(error.ctx)
    word = wanted[1]
    if error.ctx.parent is None:
        if word in _COMMANDS:
            return f" Did you mean {_COMMANDS[word]}?"
    elif _OF_GROUPS.get(word) in there:
        return f" Did you mean '{_OF_GROUPS[word]}'?"
    close = difflib.get_close_matches(word, there, 1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _left_out(error: click.MissingParameter) -> str:
    """Say what may have been given in the place of what is missing."""
    given = error.ctx.params if error.ctx is not None else {}
    name = error.param.name if error.param is not None else None
    vm = given.get("vm")
    if isinstance(vm, str) and is_path(vm):
        return f" {vm!r} was taken for the VM: name the VM first (uvmshare vm ls lists them)."
    if name == "guest_path":
        return " Name the VM, the directory, and where the guest is to mount it: map VM PATH GUEST_PATH."
    return ""


def is_path(text: str) -> bool:
    """Tell a path of the host from a VM's id, which has none of these characters there."""
    return "/" in text or text.startswith((".", "~"))


def what_a_path_was_meant_for(path: str) -> str:
    """Say what a text may have been that was given as a share, and leads to nothing; nothing where nobody can guess."""
    if re.match(r"(unix|tcp|vsock|firecracker|cloud-hypervisor):", path):
        return f"an address is given by --listen: --listen {path}"
    host, colon, guest = path.rpartition(":")
    if colon and host and guest.startswith("/"):
        return f"where the guest mounts it is not said here: share {host}, and give {guest} to `map` or `guest mount`"
    return ""
