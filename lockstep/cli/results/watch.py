"""`lockstep watch`: a page that shows a run while it goes on, or after it."""

import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import click

from lockstep.cli.options.completion import run_or_address
from lockstep.cli.options.job import takes_trust
from lockstep.cli.options.run import KEY_OPTION, passes_link
from lockstep.common.errors import UsageError
from lockstep.common.runtime.notice import notice
from lockstep.common.transport.address import parse
from lockstep.launch.client import say
from lockstep.launch.page_process import LOOPBACK, demand_page
from lockstep.launch.supervision.channel import ListeningReport, ParentLink

#: The advice if a flag needs one run.
ONE_RUN = "expected the folder of one run with --server or --metrics-only"


@click.command(short_help="Show runs live in a browser.")
@click.argument("whats", metavar="RUN...|RUNS|ADDRESS", nargs=-1, required=True, type=run_or_address)
@click.option("--listen", metavar="HOST:PORT", default=LOOPBACK, help="address of the page  [127.0.0.1, a free port]")
@click.option(
    "--published",
    metavar="HOST:PORT",
    help="address in browsers, if it is another: of a proxy, or of a container's host",
)
@click.option("--server", "address", metavar="ADDRESS", help="also show the workers that the run's server reports")
@KEY_OPTION
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="file with a token, which the link then contains  [a new token if others can reach the page]",
)
@click.option("--open", "is_opened", is_flag=True, help="open the page in your browser")
@click.option("--metrics-only", "is_metrics_only", is_flag=True, help="serve only /metrics, for Prometheus")
@click.option("--fed", "is_fed", is_flag=True, hidden=True, help="started by `train`: statuses come on stdin")
@takes_trust
@passes_link
def watch(
    link: ParentLink,
    whats: tuple[str, ...],
    listen: str,
    published: str | None,
    address: str | None,
    key: Path | None,
    token_file: Path | None,
    is_opened: bool,
    is_metrics_only: bool,
    is_fed: bool,
) -> None:
    """Show a run in a browser: curves, workers, events, and what the model makes of what you draw.

    The page follows a run while it trains. It also shows a run that has ended or has not started yet. Of
    several runs, or a folder of them, it lists all and compares their curves. It runs in a separate process and never
    changes a run.

    \b
      lockstep watch runs/20261124-231714-lenet
      lockstep watch runs/first runs/second
      lockstep watch runs
      lockstep watch tcp://127.0.0.1:5555
      lockstep watch runs/mine --server tcp://127.0.0.1:5555
      lockstep watch runs/mine --listen 0.0.0.0:8000

    By default, only this machine can open the page. With another address, with --published or with --token-file, the
    link contains a token, which every visitor needs. Prometheus can scrape /metrics.
    """
    if is_fed:
        link.open()
    demand_page("lockstep watch")
    # Imported here, since the extra may not be installed.
    from lockstep.results.watch.serving import ENDS_S, PageServer, ask_statuses, parse_place, read_statuses, read_token
    from lockstep.results.watch.sources import WatchedRuns

    place, token = parse_place(listen), "" if token_file is None else read_token(token_file)
    reached = None if published is None else parse_place(published)
    folders, address = folders_and_address(whats, address)
    source = WatchedRuns.of(folders) if folders else WatchedRuns()
    report_missing([] if is_fed else folders)
    if source.is_many and (address is not None or is_metrics_only):
        raise UsageError(f"{' '.join(map(repr, whats))} is a folder of runs, or several: {ONE_RUN}")
    if is_fed:
        threading.Thread(target=read_statuses, args=(source,), daemon=True).start()
    ask = None if is_fed or address is None else partial(ask_statuses, source, address, key)

    def show(address: str) -> None:
        report_page(link if is_fed else None, "metrics" if is_metrics_only else "page", address, is_opened=is_opened)

    # An interrupt is how a page ends: nothing has failed.
    with suppress(KeyboardInterrupt), nullcontext() if ask is None else in_thread(ask, ENDS_S):
        PageServer(source, place, is_metrics_only, token, reached).run(show)


@contextmanager
def in_thread(work: Callable[[threading.Event], None], patience_s: float) -> Iterator[None]:
    """Work in a thread within the context, at whose end the event is set; wait so long for the work to end."""
    is_over = threading.Event()
    thread = threading.Thread(target=work, args=(is_over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        # A connection would be opened and closed after the end of the command.
        thread.join(patience_s)


def report_missing(folders: Sequence[Path]) -> None:
    """Report folders that do not exist, in which a run may begin later."""
    for folder in folders:
        if not folder.exists():
            say(notice(f"there is no folder {str(folder)!r}: the page shows a run there once it has begun"))


def report_page(link: ParentLink | None, name: str, address: str, *, is_opened: bool) -> None:
    """Report to the process that started this one, or to a person, where the page is; open it if wanted."""
    if link is not None:
        link.report(ListeningReport(address=address))
    else:
        say(f"{name} at {address}  (press Ctrl-C to stop)")
    if is_opened:
        webbrowser.open(address)


def folders_and_address(whats: Sequence[str], server: str | None) -> tuple[list[Path], str | None]:
    """Return the folders, and the server's address, that the arguments and `--server` name; None without an address."""
    folders = [Path(what) for what in whats if "://" not in what]
    addresses = [what for what in whats if "://" in what] + ([] if server is None else [server])
    if len(addresses) > 1:
        raise UsageError(f"{addresses[-1]!r} and {addresses[0]!r} are two addresses: remove one")
    if folders and len(folders) < len(whats):
        raise UsageError(f"the address {addresses[0]!r} among folders: expected it as --server, with one folder")
    for address in addresses:
        parse(address)
    return folders, next(iter(addresses), None)
