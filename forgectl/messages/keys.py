"""CURVE keys of a run: one secret, from which the key pair of each machine is derived."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import zmq
from zmq.utils import z85

LENGTH = 32
_PERSON = b"forgectl-curve"


class RunKeys:
    """The keys of a run, derived from its secret of LENGTH bytes. Neither repr nor str shows the secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != LENGTH:
            raise ValueError(f"a run's secret has {LENGTH} bytes, not {len(secret)}")
        self._secret = secret

    @classmethod
    def new(cls) -> RunKeys:
        """The keys of a new run."""
        return cls(os.urandom(LENGTH))

    @classmethod
    def from_text(cls, text: str) -> RunKeys:
        """The keys whose `text` this is; raises ValueError for any other text."""
        return cls(bytes.fromhex(text))

    @property
    def text(self) -> str:
        """The secret as hexadecimal text; keep it in a file that only the user can read."""
        return self._secret.hex()

    def secret(self, place: str) -> str:
        """The secret key of a machine (Z85)."""
        key = hashlib.blake2b(place.encode(), key=self._secret, person=_PERSON, digest_size=LENGTH).digest()
        return z85.encode(key).decode()

    def public(self, place: str) -> str:
        """The public key of a machine (Z85)."""
        return zmq.curve_public(self.secret(place).encode()).decode()

    def members(self, places: Iterable[str]) -> dict[str, str]:
        """Place → its public key."""
        return {place: self.public(place) for place in places}
