"""`lockstep keys`: who may take part in runs that other machines can reach."""

from pathlib import Path

import click

from common.transport.auth.credentials import Z85_KEY
from common.transport.auth.curve import new_pair
from common.transport.auth.key_file import SecretKey, read_ours, write_secret
from common.transport.auth.key_folder import KeyFolder, check_names

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group(short_help="Make keys for runs that other machines take part in.")
def keys() -> None:
    """Make keys, and choose who is admitted.

    A server with keys accepts only workers whose keys it knows; all traffic is encrypted, and workers check that it is
    the server. The list of admitted keys is read at each connection: a worker that is revoked keeps the one it has.

    \b
      lockstep keys create keys --workers 2
      lockstep server --job job.toml --bind tcp://0.0.0.0:5555 --keys keys
      lockstep worker tcp://server.example:5555 --key worker-1.key
    """


@keys.command(short_help="Make a folder with a server's key and workers' keys.")
@_FOLDER
@click.option(
    "--workers", type=click.IntRange(0, 1000), default=1, metavar="N", help="number of worker keys to make  [1]"
)
@click.option("--name", "names", multiple=True, metavar="NAME", help="a worker's name; may be repeated")
def create(folder: Path, workers: int, names: tuple[str, ...]) -> None:
    """Make DIR, which stays on the server's machine, with its key and one for each worker.

    A worker's file, DIR/NAME.key, goes to the worker's machine and nowhere else. Workers may share one.
    """
    names = names or tuple(f"worker-{number}" for number in range(1, workers + 1))
    made = KeyFolder.create(folder, names)
    click.echo(f"made {made.path}, for the server: --keys {made.path}")
    for name in names:
        click.echo(f"  {made.path / name}.key, to be moved to that worker's machine: --key {name}.key")


@keys.command(short_help="Make the key of another worker.")
@_FOLDER
@click.argument("name")
def add(folder: Path, name: str) -> None:
    """Make the key of another worker in DIR, which is admitted from now on."""
    path = KeyFolder(folder).add(name)
    click.echo(f"made {path}, to be moved to that worker's machine: --key {path.name}")


@keys.command(short_help="Make a worker's key on its own machine.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--server", required=True, metavar="KEY", help="the server's public key, or its file server.public")
def make(file: Path, server: str) -> None:
    """Make a worker's key in FILE, whose secret stays on this machine; print the command for the server's machine."""
    name = file.name.removesuffix(".key")
    check_names([name])
    public = server if Z85_KEY.fullmatch(server) else read_ours(Path(server), forbidden=0o022).strip()
    if not Z85_KEY.fullmatch(public):
        raise click.UsageError(f"no public key in {server!r}: expected 40 characters, as in DIR/server.public")
    pair = new_pair()
    write_secret(file, SecretKey(name, pair, public))
    click.echo(f"made {file}; on the server's machine:")
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
    """Stop admitting the worker NAME. A connection that it has lasts until it ends."""
    KeyFolder(folder).revoke(name)
    click.echo(f"{name} is no longer admitted; a connection that it has lasts until it, or the run, ends")


@keys.command("list", short_help="List who is admitted.")
@_FOLDER
def list_command(folder: Path) -> None:
    """Print the server's public key, and the names and public keys of all that it admits."""
    made = KeyFolder(folder)
    click.echo(f"server  {made.server_key().pair.public}")
    for public, name in made.names().items():
        click.echo(f"{name}  {public}")
