"""`lockstep keys`: the keys of those who may take part in runs that other machines can reach."""

from pathlib import Path

import click

from lockstep.cli.options.types import whole_number
from lockstep.common.transport.auth.credentials import Z85_KEY
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.auth.keys import (
    KeyFolder,
    SecretKey,
    check_names,
    read_ours,
    write_secret,
)

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group(short_help="Make keys for runs on several machines.")
def keys() -> None:
    """Make keys, and list the admitted ones.

    A server with keys admits only workers whose keys it knows. All traffic is encrypted, and each worker checks that
    it talks to the right server. Revoking a key takes effect at the next connection.

    \b
      lockstep keys create keys --workers 2
      lockstep server job.toml --bind tcp://192.168.1.7:5555 --keys keys
      lockstep worker tcp://192.168.1.7:5555 --key worker-1.key
    """


@keys.command(short_help="Make a folder of keys, for a server and its workers.")
@_FOLDER
@click.option(
    "--workers", type=whole_number(0, 1000), metavar="N", help="number of workers' keys to make  [1; 0 with --name]"
)
@click.option(
    "--name", "names", multiple=True, metavar="NAME", help="make the key of a worker with this name; may be repeated"
)
def create(folder: Path, workers: int | None, names: tuple[str, ...]) -> None:
    """Make the folder DIR with the server's key and one key per worker.

    DIR stays on the server's machine. Move each DIR/NAME.key to that worker's machine, and to no other. Several workers
    may share a key.
    """
    count = (0 if names else 1) if workers is None else workers
    names = tuple(dict.fromkeys([*(f"worker-{number}" for number in range(1, count + 1)), *names]))
    made = KeyFolder.create(folder, names)
    click.echo(f"made {made.path}; start the server with --keys {made.path}")
    for name in names:
        click.echo(f"move {made.path / name}.key to a worker, and start it with --key {name}.key")


@keys.command(short_help="Add a key for another worker.")
@_FOLDER
@click.argument("name")
def add(folder: Path, name: str) -> None:
    """Make a key for the worker NAME in DIR, and admit it from now on."""
    path = KeyFolder(folder).add(name)
    click.echo(f"made {path}; move it to a worker, and start it with --key {name}.key")


@keys.command(short_help="Make a worker's key on the worker's machine.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--server", required=True, metavar="KEY", help="public key of the server, or its file server.public")
def make(file: Path, server: str) -> None:
    """Make a worker's key in FILE, whose secret part never leaves this machine.

    Then print the command that admits the worker, to run on the server's machine.
    """
    name = file.name.removesuffix(".key")
    check_names([name])
    public = server if Z85_KEY.fullmatch(server) else read_ours(Path(server), forbidden=0o022).strip()
    if not Z85_KEY.fullmatch(public):
        raise click.UsageError(f"{server!r} is not a public key: expected 40 characters, as in DIR/server.public")
    pair = new_pair()
    write_secret(file, SecretKey(name, pair, public))
    click.echo(f"made {file}; admit it on the server's machine, where DIR is the folder of keys:")
    click.echo(f"  lockstep keys allow DIR {name} '{pair.public}'")


@keys.command(short_help="Admit a worker whose key was made elsewhere.")
@_FOLDER
@click.argument("name")
@click.argument("public")
def allow(folder: Path, name: str, public: str) -> None:
    """Admit the worker NAME with the PUBLIC key that `lockstep keys make` printed."""
    KeyFolder(folder).allow(name, public)
    click.echo(f"{name} is admitted from now on")


@keys.command(short_help="Stop admitting a worker.")
@_FOLDER
@click.argument("name")
def revoke(folder: Path, name: str) -> None:
    """Stop admitting the worker NAME. A connection that it already has stays open until the worker or the run ends."""
    KeyFolder(folder).revoke(name)
    click.echo(f"{name} is no longer admitted; a connection that is already open stays")


@keys.command("list", short_help="List the admitted keys.")
@_FOLDER
def list_command(folder: Path) -> None:
    """Print the server's public key, and the name and the public key of each worker that it admits."""
    made = KeyFolder(folder)
    click.echo(f"server  {made.server_key().pair.public}")
    for public, name in made.names().items():
        click.echo(f"{name}  {public}")
