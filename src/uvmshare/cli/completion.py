"""`uvmshare completion`: the script that a shell loads to complete this command.

What lives here: which shells there are and how to load the script; the scripts are click's own.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from uvmshare.cli.output import say_lines

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  uvmshare completion bash > ~/.local/share/bash-completion/completions/uvmshare
    zsh:   uvmshare completion zsh > "${fpath[1]}/_uvmshare"
    fish:  uvmshare completion fish > ~/.config/fish/completions/uvmshare.fish

    \b
    For this shell alone:
      eval "$(uvmshare completion bash)"
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    root = ctx.find_root()
    found = get_completion_class(shell)
    assert found is not None, "click has these three shells built in"
    script = found(root.command, {}, "uvmshare", "_UVMSHARE_COMPLETE")
    say_lines(script.source())
