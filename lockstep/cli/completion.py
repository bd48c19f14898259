"""`lockstep completion`: what makes a shell complete commands, flags, models and runs."""

import click
from click.shell_completion import get_completion_class

#: The variable by which a shell asks for completions: click derives it from the program's name.
VARIABLE = "_LOCKSTEP_COMPLETE"


@click.command(short_help="Print the Tab completion of bash, zsh or fish.")
@click.argument("shell", metavar="SHELL", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script for SHELL (bash, zsh or fish) that completes commands, flags, models and runs when you press Tab.

    \b
    bash, in ~/.bashrc:
      eval "$(lockstep completion bash)"
    zsh, in ~/.zshrc, after compinit:
      eval "$(lockstep completion zsh)"
    fish:
      lockstep completion fish > ~/.config/fish/completions/lockstep.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click has all of the choices
    click.echo(kind(context.find_root().command, {}, "lockstep", VARIABLE).source())
