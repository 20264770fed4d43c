"""spa completion: what a shell must run to complete our commands, options and values."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that lets SHELL complete commands, options, targets, criteria and files.

    \b
    bash:  eval "$(spa completion bash)"   in ~/.bashrc
    zsh:   eval "$(spa completion zsh)"    in ~/.zshrc, after compinit
    fish:  spa completion fish > ~/.config/fish/completions/spa.fish"""
    from click.shell_completion import get_completion_class

    from spa.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "spa", "_SPA_COMPLETE").source())
