"""Examine the way from this machine to a server, in the order in which a worker's connection meets its obstacles."""

import os
import platform
import secrets
from contextlib import closing

from lockstep.checking.doctor import Examination
from lockstep.checking.examined_job import Finding, Group
from lockstep.common.errors import Diagnosis, RefusalKind, RemoteProtocolError, Stage
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Finished,
    Join,
    Leave,
    Message,
    Refused,
    ServerMessage,
    Welcome,
)
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.transport.auth.credentials import Credential
from lockstep.common.transport.zeromq.client import ZeroMqClient
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.client import HANDSHAKE_S

#: Seconds to wait for an answer in all, and between two looks at the cause of the delay.
TIMEOUT_S, INTERVAL_S = 6.0, 1.0

SAME_VERSION = "install the same version of Lockstep on both machines"

#: Advice by how far a worker gets, or by why it is refused.
FIXES: dict[Stage | RefusalKind, str] = {
    Stage.NAME: "correct the name, or use the IP address, which `lockstep server` shows",
    Stage.ROUTE: "compare the address, and look for a way to it with `ip route get ADDRESS`",
    Stage.FIREWALL: "allow inbound TCP to that one port at the server",
    Stage.PORT: "check that the server's --bind is not 127.0.0.1",
    Stage.SERVICE: "compare the port with the one that `lockstep server` shows",
    Stage.KEY: "pass --key with one of the keys that `lockstep keys list DIR` shows there",
    Stage.VERSION: SAME_VERSION,
    RefusalKind.VERSION: SAME_VERSION,
    RefusalKind.NUMERICS: "compare `lockstep doctor --report` of both machines, or begin with --set numerics=portable",
}

#: Obstacles that are certain at once: waiting longer would not change the diagnosis.
CERTAIN_AT_ONCE = (Stage.NAME, Stage.ROUTE, Stage.PORT)


def examine_connection(address: str, credential: Credential) -> Examination:
    """Join as a worker does, and leave at once; takes at most ten seconds unless the name service takes longer.

    Raises AddressError if the address is malformed.
    """
    findings, state = list[Finding](), "a server answers"
    with closing(dial(address, credential=credential)) as port:
        answer = _asked(port, SystemClock(), address)
    match answer:
        case Diagnosis():
            findings = [Finding(Group.CONNECTION, answer.text, FIXES[answer.stage])]
        case Refused():
            fix = FIXES.get(answer.kind, "do what the refusal says")
            findings = [Finding(Group.CONNECTION, f"the server refuses: {answer.reason}", fix)]
        case Welcome():
            state = f"run {answer.run!r} would admit a worker of this machine"
        case Finished():
            state = "the run has ended"
    return Examination(f"{address}: {state}", findings)


def _asked(port: ZeroMqClient, clock: Clock, address: str) -> Message | Diagnosis:
    """Return the answer of the server to a joining worker, or why it gave no answer."""
    join = Join(
        protocol=PROTOCOL_VERSION,
        incarnation=secrets.token_hex(8),
        host=platform.node() or "unknown",
        pid=os.getpid(),
        fingerprint=fingerprint(),
    )
    port.send(encode(join))
    now, diagnosis = clock.now(), None
    deadline, look = now + TIMEOUT_S, now + INTERVAL_S
    while (now := clock.now()) < deadline:
        frames = port.receive(min(HANDSHAKE_S, deadline - now))
        if frames is not None:
            try:
                message, _ = decode(frames, ServerMessage)
            except RemoteProtocolError as error:
                return Diagnosis(f"the answer of the server cannot be decoded: {error}", Stage.VERSION)
            if isinstance(message, Welcome):
                port.send(encode(Leave(reason="it only tested the connection (lockstep doctor --connect)")))
                port.close(1.0)
            return message
        if now >= look or (diagnosis is None and port.is_failing):
            diagnosis, look = port.diagnosis(), now + INTERVAL_S
            if diagnosis is not None and (diagnosis.is_final or diagnosis.stage in CERTAIN_AT_ONCE):
                return diagnosis
    silent = f"the server at {address} does not answer within {TIMEOUT_S:g} s: it is stopped, or busy"
    return diagnosis or Diagnosis(silent, Stage.SERVICE)
