"""Certificates for Monarch's TLS: an authority made for the occasion, and files that Monarch reads."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = datetime.timedelta(hours=1)


def issue(folder: Path, addresses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Name → the variables for a process of Monarch's at that IP address; all of them trust one another."""
    root = generate_private_key(SECP256R1())
    draft = _draft("authority", root).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    authority = _write(folder / "authority.pem", draft.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM))
    both_ways = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    found = {}
    for name, address in addresses.items():
        key = generate_private_key(SECP256R1())
        dialled = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        draft = _draft(name, key).add_extension(dialled, critical=False).add_extension(both_ways, critical=False)
        certificate = draft.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        found[name] = {
            "HYPERACTOR_TLS_CERT": _write(folder / f"{name}.pem", certificate),
            "HYPERACTOR_TLS_KEY": _write(folder / f"{name}.key", secret),
            "HYPERACTOR_TLS_CA": authority,
        }
    return found


def _draft(name: str, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - HOUR)
        .not_valid_after(now + 24 * HOUR)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"forgectl benchmark {name}")])


def _write(path: Path, pem: bytes) -> str:
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return str(path)
