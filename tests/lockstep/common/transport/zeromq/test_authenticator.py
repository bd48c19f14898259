"""Whether a connection is let in, decided without a socket: by the whole token, or by a key that is on the list."""

from collections.abc import Mapping

import pytest

from lockstep.common.errors import KeyFileError
from lockstep.common.transport.auth.credentials import DOMAIN, KeyPair, ServerKeys, Token
from lockstep.common.transport.zeromq.authenticator import NotAdmittedError, authenticate

SERVER, WORKER, STRANGER = "s" * 40, "w" * 40, "x" * 40
KEYS = ServerKeys(KeyPair(SERVER, "S" * 40), lambda: {WORKER: "worker-1"})
TOKEN = Token("0123456789abcdef")


def asked(lock: ServerKeys | Token, *credentials: str, mechanism: str = "PLAIN", domain: bytes = DOMAIN) -> str:
    """Return the name under which a connection with these credentials is let in."""
    return authenticate(lock, domain, mechanism, credentials)


def refusal(lock: ServerKeys | Token, *credentials: str, mechanism: str = "PLAIN", domain: bytes = DOMAIN) -> str:
    """Return why a connection with these credentials is not let in."""
    with pytest.raises(NotAdmittedError) as refused:
        asked(lock, *credentials, mechanism=mechanism, domain=domain)
    return str(refused.value)


def test_the_token_lets_in() -> None:
    assert asked(TOKEN, "lockstep", TOKEN.text) == "token"


@pytest.mark.parametrize("length", range(len(TOKEN.text)))
def test_the_beginning_or_the_end_of_a_token_is_not_the_token(length: int) -> None:
    for part in (TOKEN.text[:length], TOKEN.text[len(TOKEN.text) - length :]):
        assert refusal(TOKEN, "lockstep", part)


@pytest.mark.parametrize("place", range(len(TOKEN.text)))
def test_a_token_that_differs_in_one_character_is_not_the_token(place: int) -> None:
    other = TOKEN.text[:place] + "x" + TOKEN.text[place + 1 :]
    assert refusal(TOKEN, "lockstep", other) == (
        "it does not have the token of this run, which only its own processes have"
    )


@pytest.mark.parametrize(
    "password",
    [TOKEN.text + "0", TOKEN.text + "\0", TOKEN.text + "\n", " " + TOKEN.text, 2 * TOKEN.text, TOKEN.text.upper(), "ä"],
)
def test_a_longer_token_and_one_in_other_letters_is_not_the_token(password: str) -> None:
    assert refusal(TOKEN, "lockstep", password)


@pytest.mark.parametrize("credentials", [(), (TOKEN.text,), (TOKEN.text, ""), ("lockstep", TOKEN.text, "")])
def test_the_token_is_a_password_with_a_users_name(credentials: tuple[str, ...]) -> None:
    assert refusal(TOKEN, *credentials)


def test_a_key_on_the_list_lets_in_under_its_name() -> None:
    assert asked(KEYS, WORKER, mechanism="CURVE") == "worker-1"


def test_the_servers_own_key_lets_in_whatever_the_list_is() -> None:
    for lock in (KEYS, ServerKeys(KEYS.pair, unreadable)):
        assert asked(lock, SERVER, mechanism="CURVE") == "server"


@pytest.mark.parametrize("public", [STRANGER, "", WORKER[:-1], WORKER + "w", WORKER.upper(), "worker-1"])
def test_any_other_key_is_refused_with_the_cure(public: str) -> None:
    assert refusal(KEYS, public, mechanism="CURVE") == (
        f"its key {public!r} is not admitted (to admit it: lockstep keys allow DIR NAME '{public}')"
    )


def unreadable() -> Mapping[str, str]:
    raise KeyFileError("the list cannot be read")


def test_a_list_that_cannot_be_read_lets_nobody_in() -> None:
    why = refusal(ServerKeys(KEYS.pair, unreadable), WORKER, mechanism="CURVE")
    assert why == "no client is admitted: the list cannot be read"


@pytest.mark.parametrize("lock", [KEYS, TOKEN], ids=["keys", "token"])
@pytest.mark.parametrize(
    ("mechanism", "credentials"),
    [
        ("NULL", ()),
        ("NULL", (WORKER,)),
        ("NULL", ("lockstep", TOKEN.text)),
        ("GSSAPI", (WORKER,)),
        ("GSSAPI", ("lockstep", TOKEN.text)),
        ("CURVE", ()),
        ("CURVE", (WORKER, "")),
        ("CURVE", ("lockstep", TOKEN.text)),
        ("PLAIN", (WORKER,)),
        ("PLAIN", (SERVER,)),
        ("", ()),
    ],
)
def test_nothing_else_lets_in(lock: ServerKeys | Token, mechanism: str, credentials: tuple[str, ...]) -> None:
    why = refusal(lock, *credentials, mechanism=mechanism)
    assert why == f"it uses the mechanism {mechanism}, which this server does not accept"


def test_a_key_is_no_use_where_a_token_is_asked_for_and_a_token_none_where_a_key_is() -> None:
    assert refusal(TOKEN, WORKER, mechanism="CURVE")
    assert refusal(TOKEN, SERVER, mechanism="CURVE")
    assert refusal(KEYS, "lockstep", TOKEN.text)


@pytest.mark.parametrize("domain", [b"", b"lockste", b"lockstep2", b"global"])
def test_another_domain_is_not_ours(domain: bytes) -> None:
    why = f"the domain {domain!r} is not ours"
    assert refusal(TOKEN, "lockstep", TOKEN.text, domain=domain) == why
    assert refusal(KEYS, WORKER, mechanism="CURVE", domain=domain) == why
    assert refusal(KEYS, SERVER, mechanism="CURVE", domain=domain) == why
