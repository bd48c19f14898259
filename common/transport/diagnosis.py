"""Why a client has no connection, in words that say what to do. Pure: is told what was found and what was heard."""

from dataclasses import dataclass
from enum import Enum

from common.transport.auth.credentials import ClientKeys, Credential, Token

#: Handshakes that break off one after the other until that counts as the server's answer.
ENOUGH = 2


class Stage(Enum):
    """How far a connection came, in this order."""

    NAME = "name"
    ROUTE = "route"
    FIREWALL = "firewall"
    PORT = "port"
    SERVICE = "service"
    KEY = "key"
    VERSION = "version"


@dataclass(frozen=True)
class Diagnosis:
    """What is in the way."""

    text: str
    stage: Stage
    #: Whether it stays so however long one waits.
    is_final: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a look at an address came to: an obstacle, or else what listens there."""

    #: Why there is no connection, in the system's words; empty where there is one.
    obstacle: str = ""
    #: How far it came, where there is none.
    stage: Stage = Stage.ROUTE
    #: How a ZeroMQ server wants its clients to show who they are; empty where it is no such server.
    mechanism: str = ""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What ZeroMQ told of a client's own attempts."""

    #: Whether it is connected.
    is_through: bool = False
    #: Whether the server said that it does not let this client in.
    is_refused: bool = False
    #: Handshakes that broke off one after the other.
    failed: int = 0
    #: Whether it has stopped trying: after a fault in what the other end said, ZeroMQ dials no more.
    is_over: bool = False


def mechanism_of(credential: Credential) -> str:
    """Return what a client's greeting says of how it shows who it is."""
    return {ClientKeys: "CURVE", Token: "PLAIN"}.get(type(credential), "NULL")


def explained(address: str, credential: Credential, heard: Heard, found: Found) -> Diagnosis | None:
    """Return what is in the way of a connection to `address`, None where nothing is known to be."""
    if heard.is_through:
        return None
    if heard.is_refused:
        return Diagnosis(_refused(address, credential), Stage.KEY, is_final=True)
    if found.obstacle:
        return Diagnosis(found.obstacle, found.stage)
    if not found.mechanism:
        return Diagnosis(f"what listens at {address} is no server of ours: is this its port?", Stage.SERVICE)
    if found.mechanism != mechanism_of(credential):
        return Diagnosis(_mismatch(address, credential, found.mechanism), Stage.KEY, is_final=True)
    if heard.failed >= ENOUGH:
        has_keys = isinstance(credential, ClientKeys)
        return Diagnosis(_broken_off(address, credential), Stage.KEY if has_keys else Stage.VERSION, is_final=has_keys)
    return None


def _refused(address: str, credential: Credential) -> str:
    if isinstance(credential, ClientKeys):
        return (
            f"the server at {address} does not let the key {credential.pair.public!r} in: on its machine, `lockstep "
            "keys list DIR` tells whom it does, and `lockstep keys allow DIR NAME KEY` changes that"
        )
    return f"the server at {address} is that of another run"


def _mismatch(address: str, credential: Credential, mechanism: str) -> str:
    match mechanism:
        case "CURVE":
            return f"the server at {address} demands a key: expected --key FILE, with the file that its owner made"
        case "PLAIN":
            return f"the server at {address} is one of `lockstep train`: it lets in nobody but the workers of that"
        case _ if isinstance(credential, ClientKeys):
            return (
                f"the server at {address} has no keys, and cannot prove that it is yours: expected one that was "
                "started with --keys (without --key, whoever listens there is taken for it)"
            )
        case _:
            return f"the server at {address} asks for {mechanism!r}, which is none of ours: is this its port?"


def _broken_off(address: str, credential: Credential) -> str:
    if isinstance(credential, ClientKeys):
        return (
            f"the server at {address} breaks off the handshake: its key is not {credential.server!r}, which this key "
            "file names, or it cannot look up keys; compare `lockstep keys list DIR` on its machine"
        )
    return f"the server at {address} breaks off the handshake: is the same version of lockstep on both sides?"
