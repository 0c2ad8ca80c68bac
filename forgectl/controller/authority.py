"""The run's certificate authority: who may send Monarch's messages between machines. Made for a run, gone with it.

Import it where it is needed: cryptography takes 0.05 s, and most runs stay on one machine.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from forgectl.errors import UsageError
from forgectl.protocol import Membership

TOLERANCE = datetime.timedelta(days=1, hours=1)
"""How wrong the clock of a host may be, either way."""
LIFETIME = datetime.timedelta(days=366)
"""Longer than any run: what ran out would end one that nobody had touched."""
LONGEST_NAME = 64
"""Of a common name, by X.509. It is for people who look at a certificate: what counts are the addresses."""


class Authority:
    """Issues certificates. Its repr shows nothing of its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def new(cls, run: str) -> Authority:
        """One with a fresh key (ECDSA P-256), that no other run knows."""
        key, name = _fresh_key(), _name(f"forgectl run {run}")
        now = datetime.datetime.now(datetime.timezone.utc)
        draft = _draft(name, name, key, key, (now - TOLERANCE, now + LIFETIME + TOLERANCE))
        draft = draft.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        draft = draft.add_extension(_usage(ca=True), critical=True)
        return cls(draft.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, pem: str) -> Authority:
        """The authority that `dump` wrote; raises ValueError for any other text."""
        key = serialization.load_pem_private_key(pem.encode(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the run's certificate authority has a key of another kind")
        return cls(x509.load_pem_x509_certificate(pem.encode()), key)

    def dump(self) -> str:
        """Its certificate and its key (PEM). Secret: whoever has it may join the run."""
        return self.certificate + _key_pem(self._key)

    @property
    def certificate(self) -> str:
        """What all ends trust (PEM). No secret."""
        return _certificate_pem(self._certificate)

    def issue(self, name: str, addresses: Sequence[str]) -> Membership:
        """A key, and its certificate, for the end `name` that is dialled at `addresses` (IP addresses, DNS names).

        Good for both ways, as server and as client; without addresses as client alone. Raises UsageError for what is
        no such address.
        """
        key, own = _fresh_key(), self._certificate
        since = max(datetime.datetime.now(datetime.timezone.utc) - TOLERANCE, own.not_valid_before_utc)
        draft = _draft(_name(name), own.subject, key, self._key, (since, own.not_valid_after_utc))
        draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        draft = draft.add_extension(_usage(ca=False), critical=True)
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        draft = draft.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        if addresses:
            names = x509.SubjectAlternativeName([_general_name(a) for a in dict.fromkeys(addresses)])
            draft = draft.add_extension(names, critical=False)
        certificate = _certificate_pem(draft.sign(self._key, hashes.SHA256()))
        return Membership(certificate, _key_pem(key), self.certificate)


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuers_key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    """What a certificate of the run has in any case; strict verifiers ask for both key identifiers."""
    issuers_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuers_id, critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(address.rstrip("."))
    except ValueError:
        hint = "in the spec, give the host an `address:` that the other hosts reach it by"
        raise UsageError(f"{address!r} is neither an IP address nor a DNS name in ASCII", hint=hint) from None


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:LONGEST_NAME])])


def _fresh_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def _certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
