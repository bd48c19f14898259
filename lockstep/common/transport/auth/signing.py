"""Ed25519 keys (RFC 8032) by which a worker signs its results: the only file that knows the library for them.

CURVE's keys are for key agreement and cannot sign, so a key file has a seed for this next to them.
"""

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from lockstep.common.transport.auth.credentials import KeyPair


@dataclass(frozen=True)
class Signer:
    """A signer with a key."""

    key: KeyPair
    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, seed: str) -> "Signer":
        """Return the signer with a seed."""
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
        return cls(KeyPair(private.public_key().public_bytes_raw().hex(), seed), private)

    @classmethod
    def new(cls) -> "Signer":
        """Return a new signer."""
        return cls.of(Ed25519PrivateKey.generate().private_bytes_raw().hex())

    def sign(self, statement: bytes) -> bytes:
        """Return the signature of a statement: 64 bytes."""
        signature: bytes = self._private.sign(statement)
        return signature


def is_signed(public: str, statement: bytes, signature: bytes) -> bool:
    """Tell whether a signature of a statement was made with the secret half of a public key."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True
