"""Ed25519 by the library, with the vector of the RFC, and what is signed with it."""

import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.statement import signed_run, statement_of

signing = pytest.importorskip("lockstep.common.transport.auth.signing")

#: RFC 8032, section 7.1, test 1.
SEED = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
SIGNATURE = (
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
    "5141438e7a100b"
)


def test_the_vector_of_the_rfc() -> None:
    signer = signing.Signer.of(SEED)
    assert signer.key.public == PUBLIC
    assert signer.sign(b"").hex() == SIGNATURE
    assert SEED not in repr(signer)


def test_a_signature_is_of_one_key_and_one_statement() -> None:
    signer, other = signing.Signer.new(), signing.Signer.new()
    signature = signer.sign(b"this")
    assert signing.is_signed(signer.key.public, b"this", signature)
    assert not signing.is_signed(signer.key.public, b"that", signature)
    assert not signing.is_signed(other.key.public, b"this", signature)
    assert not signing.is_signed(signer.key.public, b"this", signature[:-1])
    assert not signing.is_signed("", b"this", signature)


def test_a_statement_is_of_all_that_it_names() -> None:
    base = ("r" * 64, "j" * 64, 3, Node(0, 2), "d" * 64)
    statements = {
        statement_of(*base),
        statement_of("s" * 64, *base[1:]),
        statement_of(base[0], "k" * 64, *base[2:]),
        statement_of(*base[:2], 30, *base[3:]),
        statement_of(*base[:3], Node(0, 1), base[4]),
        statement_of(*base[:3], Node(1, 2), base[4]),
        statement_of(*base[:4], "e" * 64),
    }
    assert len(statements) == 7
    assert signed_run("one", "link") != signed_run("two", "link") != signed_run("two", "other")
