"""A standby by hand, or of a `train`: it mirrors a run into a folder of its own, and serves it once that is needed."""

import platform
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from rich.console import Console

from lockstep.common.data.source import load
from lockstep.common.errors import DataError, LedElsewhereError, ModelError, NumericsError, RunError, UsageError
from lockstep.common.files.sanitize import one_line
from lockstep.common.model.source import read_job_source
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.fingerprint import fingerprint_of
from lockstep.common.protocol.messages import NAME_LIMIT, PROTOCOL_VERSION, StandbyAddress
from lockstep.common.protocol.standby_messages import MirrorRequest
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.notice import notice
from lockstep.common.statemachine.leader_inquiry import LeaderInquiry
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.auth.credentials import SERVER_NAME, ClientKeys, Credential, Lock, ServerKeys
from lockstep.common.transport.auth.keys import STANDBY, AllowList, SecretKey, read_key
from lockstep.common.transport.port import LINGER_S, Dial, ServerPort
from lockstep.common.transport.zeromq.ports import PortPoller
from lockstep.launch.endpoints import (
    WARNING,
    credential_of,
    dial_with,
    dialled,
    keyed,
    lock_of,
    nearby,
    server_key_in,
)
from lockstep.launch.run_end import kept_on_failure, show_end
from lockstep.launch.serve import Listening, Service, serve_by_hand, serve_run
from lockstep.launch.supervision.channel import ListeningReport, ParentLink
from lockstep.packing.cache import DatasetCache
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.run_folder import read_receipt, read_result
from lockstep.ps.standby.mirror import CONTENTS, MIRROR, Mirror
from lockstep.ps.standby.shell import StandbyShell
from lockstep.ps.standby.source import ALLOWED
from lockstep.ps.standby.state import StandbyState, TakeOver
from lockstep.ps.standby.terms import read_terms
from lockstep.results.reports.display import Display, Lines, display_for, print_plainly
from lockstep.runs.run_dir import (
    check_run_dir,
    finished,
    has_begun,
    keep_parts,
    recorded_job,
    resumed_job,
    set_aside,
    trust_source,
    writing_to,
)
from lockstep.runs.session import Destination

#: The exit code of a server that has handed its run over, and may be started again to be a standby: that of an
#: interrupt, since the run is not over.
HANDED_OVER = 130


class StartFlags(msgspec.Struct, frozen=True, kw_only=True):
    """The flags by which a server or a standby is started."""

    bind: str
    #: The server's folder of keys, or the key of a standby; neither if the run has none.
    keys: Path | None
    key: Path | None
    insecure: bool
    #: The private folder of the process that has started this one, None without one; and the link to it.
    supervised: Path | None
    link: ParentLink
    #: Whether the run leaves a picture.
    picture: bool


class StandbyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A standby of a server, whose run it mirrors into a folder."""

    flags: StartFlags
    server: StandbyAddress
    folder: Path
    #: Options that the run's folder does not have, for the time when it leads the run.
    given: Mapping[str, Any]


def own_key(flags: StartFlags) -> Path | None:
    """Return the file of the key that a standby shows: its own, or that of the server; None without keys."""
    return flags.key or server_key_in(flags.keys)


def own_public(flags: StartFlags, credential: Credential) -> str:
    """Return the public half of a standby's own key, empty if it has that of the server, or none."""
    return credential.pair.public if flags.key is not None and isinstance(credential, ClientKeys) else ""


def access_of(request: StandbyRequest) -> tuple[Credential, Lock]:
    """Return what a standby shows to the server, and its own lock.

    `KeyFileError` if its key cannot be used, or is a worker's.
    """
    flags = request.flags
    if flags.key is None:
        lock = lock_of(flags.keys, flags.supervised, is_insecure=flags.insecure)
        return credential_of(own_key(flags), flags.supervised), lock
    if flags.keys is not None:
        raise UsageError("--key and --keys: expected a standby's own key, or the server's folder of keys; remove one")
    key = read_key(flags.key)
    if not key.name.startswith(STANDBY) or not key.server:
        raise UsageError(
            f"the key {str(flags.key)!r} is that of {key.name!r}: expected a standby's, as `lockstep keys add DIR "
            "standby-1` makes"
        )
    path = request.folder / ALLOWED
    lock = ServerKeys(key.pair, partial(admitted, path, key))
    return ClientKeys(key.pair, key.server, key.standbys), lock


def admitted(path: Path, key: SecretKey) -> Mapping[str, str]:
    """Return whom a standby admits, by public key: the server that it mirrors, and whom that admits."""
    names = AllowList(path)() if path.exists() else {}
    return {**names, key.server: SERVER_NAME}


def prepare(request: StandbyRequest, say: Callable[[str], None]) -> None:
    """Make the folder of a mirror, unless it is one already. `UsageError` if it is anything else."""
    folder = request.folder
    if (folder / MIRROR).is_file():
        return
    keep_parts(folder, say)
    check_run_dir(folder)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MIRROR).touch()


def check_machine(folder: Path, state: StandbyState, say: Callable[[str], None]) -> None:
    """Raise a `UsageError` if this machine could not lead the run that is mirrored. Takes the run's numerics.

    Its data is packed again if the cache has it no more, as it is for a run that is resumed.
    """
    job, receipt = recorded_job(folder), read_receipt(folder)
    take_numerics(job.numerics)
    with suppress(ModelError):
        source = read_job_source(job)
        # As a worker: a file that is here, and is the server's, belongs to this user.
        if source.digest == receipt.model_source_sha256:
            trust_source(source)
    resumed_job(folder, {})
    _check_numerics(folder, receipt)
    DatasetCache(say=say).pack_again(folder, job.data)
    # A standby has no more memory than its mirror needs, until it leads the run.
    digest = load(job.data).digest
    if digest != receipt.dataset_sha256:
        raise DataError(
            f"the dataset {job.data!r} is not the server's (SHA-256 {digest[:12]}… here, "
            f"{receipt.dataset_sha256[:12]}… there): copy the server's data to this machine"
        )


def leave_nothing(folder: Path) -> None:
    """Remove a mirror that has got nothing."""
    mirror = folder / MIRROR
    if mirror.is_file() and not mirror.stat().st_size:
        shutil.rmtree(folder / CONTENTS, ignore_errors=True)
        with suppress(OSError):
            mirror.unlink()
            folder.rmdir()


def _check_numerics(folder: Path, receipt: Receipt) -> None:
    there = msgspec.structs.replace(receipt.fingerprint(str(folder)), engine="", evidence="")
    differences = there.differences(fingerprint_of(there.mode))
    if differences:
        named = "; ".join(f"{name} {was!r} at the server, {here!r} here" for name, was, here in differences)
        raise NumericsError(
            f"the numerics of this machine differ from the server's, and so would the bits: {named}: use equal "
            "machines and versions, or a job with --numerics portable"
        )


class FolderHolds(Enum):
    """The contents of a folder that a server finds."""

    #: Nothing, or a claim of a process that was killed before it had written anything.
    NOTHING = "nothing"
    #: A mirror: it was a standby.
    MIRROR = "mirror"
    #: A run that it led.
    RUN = "run"
    #: A run that is over.
    RESULT = "result"


def found_in(folder: Path) -> FolderHolds:
    """Return what a folder holds."""
    if has_begun(folder) and finished(folder) is not None:
        return FolderHolds.RESULT
    if (folder / MIRROR).is_file():
        return FolderHolds.MIRROR
    return FolderHolds.RUN if has_begun(folder) else FolderHolds.NOTHING


def has_led_as_standby(folder: Path, own: str) -> bool:
    """Tell whether the server at the address `own` led the run in a folder after another one, perhaps to its end."""
    is_led = has_begun(folder) and not (folder / MIRROR).is_file()
    return is_led and read_terms(folder).earlier_leader(own) is not None


def server_with_more(servers: tuple[StandbyAddress, ...], dial: Dial, clock: Clock) -> StandbyAddress | None:
    """Return the first of these servers to answer that it leads the run, or has a checkpoint; None if none does."""
    search = LeaderSearch(servers)
    found = LeaderInquiry(search, dial).find(clock, lambda answer: answer.is_leader or answer.step > 0)
    return None if found is None else found[0]


def show_finished(console: Console, folder: Path) -> None:
    """Show the end of a run that is over already."""
    print_plainly(console, f"the run in {folder} is already finished")
    show_end(console, read_result(folder), folder, has_picture=False)


def stand_by(request: StandbyRequest) -> int:
    """Mirror a run, and lead it once that is needed; return the exit code.

    One that has led the run, and is started again by the same command, leads it again unless another server does by
    now. If it has led it to its end, it is a standby for the next run. A `RunError` or `KeyboardInterrupt` says how it
    failed.
    """
    credential, lock = access_of(request)
    console = Console(highlight=False, stderr=request.flags.supervised is not None)
    listening = Listening(request.flags.bind, lock, request.flags.insecure)
    if request.flags.supervised is None and has_led_as_standby(request.folder, dialled(request.flags.bind)):
        if found_in(request.folder) is FolderHolds.RESULT:
            print_plainly(console, f"the run that has ended here is kept in {set_aside(request.folder)}")
        else:
            try:
                return lead_again(request, credential, listening, console)
            except LedElsewhereError as elsewhere:
                request = follow(request, elsewhere, console)
    return mirror_and_lead(request, credential, listening, console)


def follow(request: StandbyRequest, elsewhere: LedElsewhereError, console: Console) -> StandbyRequest:
    """Return the request of a standby of the server that leads the run, for which there is room in its folder now."""
    leader = StandbyAddress(address=elsewhere.address, public=elsewhere.public)
    kept = set_aside(request.folder)
    print_plainly(console, f"the run goes on at {leader.address}; the part that was led here is kept in {kept}")
    return replace(request, server=leader)


def mirror_and_lead(request: StandbyRequest, credential: Credential, listening: Listening, console: Console) -> int:
    """Be a standby until the run is over, and lead it to its end if that is needed."""
    prepare(request, say_of(request, console))
    with closing(listening.serve()) as port:
        if request.flags.supervised is not None:
            request.flags.link.report(ListeningReport(address=nearby(port.address)))
        else:
            announce(console, request, port)
        shell = shell_of(request, credential, port, console, listening)
        ended = shell.run()
        leave_nothing(request.folder)
        if isinstance(ended, TakeOver):
            say_of(request, console)(notice(f"the standby at {port.address} takes over: {ended.reason}"))
            return lead(request, credential, shell, ended, listening, console)
    if ended.code == 130:
        raise KeyboardInterrupt
    if ended.code:
        raise (UsageError if ended.code == 2 else RunError)(ended.reason)
    if request.flags.supervised is None and found_in(request.folder) is not FolderHolds.RESULT:
        raise RunError(f"the run has ended without a result; what there is of it is in {str(request.folder)!r}")
    print_plainly(console, f"the run is over; what there is of it is in {request.folder}")
    return 0


def say_of(request: StandbyRequest, console: Console) -> Callable[[str], None]:
    """Return what prints a line, and reports it to the process that has started this one if there is one."""
    return partial(print_plainly, console) if request.flags.supervised is None else request.flags.link.say


def announce(console: Console, request: StandbyRequest, port: ServerPort) -> None:
    """Print what a standby is, and how a person lets it lead the run."""
    if request.flags.insecure:
        print_plainly(console, WARNING)
    own = own_key(request.flags)
    key = "" if own is None else f" --key {shlex.quote(str(own))}"
    print_plainly(
        console, f"standby of {request.server.address}, listening on {port.address}; let it lead the run with:"
    )
    print_plainly(console, f"  lockstep promote {dialled(port.address)}{key}")


def shell_of(
    request: StandbyRequest, credential: Credential, port: ServerPort, console: Console, listening: Listening
) -> StandbyShell:
    """Return a standby that has asked nothing yet."""
    own = dialled(port.address)
    mirrors = MirrorRequest(
        protocol=PROTOCOL_VERSION,
        host=one_line(platform.node() or "unknown", NAME_LIMIT),
        address=own,
        public=own_public(request.flags, credential),
    )
    search = LeaderSearch((request.server,), own, keyed=keyed(credential, request.server.address)[:-1])
    state = StandbyState(search, mirrors, Mirror.restored(request.folder))
    upstream = dial_with(credential, request.server.address, request.server.public)
    return StandbyShell(
        state,
        port,
        upstream,
        partial(dial_with, credential),
        SystemClock(),
        say_of(request, console),
        PortPoller(),
        listening.rejections,
        check=partial(check_machine, request.folder, state, say_of(request, console)),
    )


def lead(
    request: StandbyRequest,
    credential: Credential,
    shell: StandbyShell,
    takeover: TakeOver,
    listening: Listening,
    console: Console,
) -> int:
    """Serve the run that was mirrored, to its end; return the exit code."""
    service = service_of(request, credential, say_of(request, console))
    destination = replace(service.destination, term=takeover.number)
    shell.upstream.close(LINGER_S)
    service = replace(service, destination=destination, standbys=(shell.state.search.server, *service.standbys))
    data = load(service.job.data)
    if request.flags.supervised is not None:
        serve_run(service, shell.port, Display(Lines(request.flags.link.say), SystemClock()), listening, data)
        return 0
    with kept_on_failure(console, request.folder), display_for(console, SystemClock()) as display:
        result = serve_run(replace(service, hands_over=True), shell.port, display, listening, data)
    if result is None:
        return HANDED_OVER
    show_end(console, result, request.folder, has_picture=request.flags.picture)
    return 0


def service_of(request: StandbyRequest, credential: Credential, say: Callable[[str], None]) -> Service:
    """Return what a standby serves once it leads the run in its folder, whose data is packed again if it is gone."""
    job, options = resumed_job(request.folder, request.given)
    DatasetCache(say=say).pack_again(request.folder, job.data)
    return Service(
        job,
        Destination(folder=request.folder, options=options, is_resumed=True),
        has_picture=request.flags.picture,
        dial=partial(dial_with, credential),
        standbys=(request.server,),
    )


def lead_again(request: StandbyRequest, credential: Credential, listening: Listening, console: Console) -> int:
    """Serve the run that this standby has led before; return the exit code.

    `LedElsewhereError` if another server leads it by now.
    """
    take_numerics(recorded_job(request.folder).numerics)
    service = service_of(request, credential, say_of(request, console))
    return HANDED_OVER if serve_by_hand(service, listening) is None else 0
