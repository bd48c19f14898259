"""The process that others of a run are forked from, as `python -m lockstep.cli.template`; see `ProcessTemplate`."""

import gc
import os
import select
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from lockstep.cli.main import cli, main
from lockstep.common.data.source import keep_loaded
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.runtime.environment import name_process
from lockstep.common.runtime.exit_codes import ExitCode
from lockstep.launch.supervision.template import MOST_BYTES, ForkReport, ForkRequest

#: The beginning of the command of a process of ours.
PROGRAM = [sys.executable, "-P", "-m"]

#: Makes a forked process what its request, which is still encoded, and its standard streams demand.
Begin = Callable[[bytes, Sequence[int]], NoReturn]


def become(text: bytes, streams: Sequence[int]) -> NoReturn:
    """Be the process that `python -m lockstep` would be with the arguments and the folder of a request."""
    request, code = msgspec.msgpack.decode(text, type=ForkRequest), int(ExitCode.FAILED)
    try:
        os.setsid()
        _take_streams(streams)
        if request.folder:
            os.chdir(request.folder)
        name_process([*PROGRAM, "lockstep", *request.words])
        sys.argv = [str(Path(__file__).parents[1] / "__main__.py"), *request.words]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else ExitCode.FAILED
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED  # before the command had begun
    except BaseException:  # noqa: BLE001  # nothing may reach the frames of the template
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # The handlers at exit are the template's.
        os._exit(code)


def _take_streams(streams: Sequence[int]) -> None:
    """Make these the standard streams, and close all others."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                continue  # that of the list itself
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        for number in (1, 2)
    )


def be_template(control: socket.socket, commands: Sequence[str], begin: Begin = become, data: str = "") -> None:
    """Import commands, read the dataset of that name, if any, and fork processes until the owner is gone.

    Each of them calls `begin`.
    """
    name_process([*PROGRAM, "lockstep.cli.template"])
    for name in commands:
        _ = cli.commands[name]  # which imports it
    fingerprint()  # which each server and worker needs, and which reads all code that decides bits
    keep_loaded(data)
    # These objects are never garbage: a process that looks for garbage would copy the pages that they are in.
    gc.collect()
    gc.freeze()
    running = dict[int, int]()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in running:
                poll.unregister(descriptor)
                _report_end(control, running.pop(descriptor), descriptor)
            elif (begun := _fork_next(control, begin)) is None:
                return
            else:
                running[begun[1]] = begun[0]
                poll.register(begun[1], select.POLLIN)


def _fork_next(control: socket.socket, begin: Begin) -> tuple[int, int] | None:
    """Fork the process that is requested; return its number and descriptor, None if the owner is gone."""
    text, streams, _, _ = socket.recv_fds(control, MOST_BYTES, 3)
    if not text:
        return None
    pid = os.fork()
    if not pid:
        begin(text, streams)
    for stream in streams:
        os.close(stream)
    descriptor = os.pidfd_open(pid)
    socket.send_fds(control, [msgspec.msgpack.encode(ForkReport(pid))], [descriptor])
    return pid, descriptor


def _report_end(control: socket.socket, pid: int, descriptor: int) -> None:
    _, status = os.waitpid(pid, 0)
    os.close(descriptor)
    control.send(msgspec.msgpack.encode(ForkReport(pid, os.waitstatus_to_exitcode(status))))


if __name__ == "__main__":
    be_template(socket.socket(fileno=int(sys.argv[1])), sys.argv[3:-1], data=sys.argv[2])
