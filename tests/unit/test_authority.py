"""The run's certificate authority, held to real TLS handshakes."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from forgectl.controller.authority import LIFETIME, Authority
from forgectl.errors import UsageError
from forgectl.protocol import Membership


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new("made-2026")


def context(side: int, folder: Path, trusts: str, shows: Membership | None) -> ssl.SSLContext:
    """One side of a connection, as Monarch sets up both: TLS 1.3, and each asks the other for a certificate."""
    made = ssl.SSLContext(side)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(cadata=trusts)
    if shows is not None:
        certificate, key = folder / "certificate", folder / "key"
        certificate.write_text(shows.certificate)
        key.write_text(shows.key)
        made.load_cert_chain(certificate, key)
    return made


def shake(
    folder: Path,
    server: Membership,
    client: Membership | None,
    *,
    dialled: str = "127.0.0.1",
    trusts: str | None = None,
) -> str:
    """What the client reads from the server once both have accepted the other; raises ssl.SSLError."""
    ours = context(ssl.PROTOCOL_TLS_CLIENT, folder, trusts or server.authority, client)
    theirs = context(ssl.PROTOCOL_TLS_SERVER, folder, server.authority, server)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                with listener.accept()[0] as accepted, theirs.wrap_socket(accepted, server_side=True) as secure:
                    secure.sendall(b"welcome")
            except OSError:
                pass  # the client says why

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            plain = socket.create_connection(listener.getsockname(), 10)
            with plain, ours.wrap_socket(plain, server_hostname=dialled) as secure:
                return secure.recv(100).decode()
        finally:
            serving.join()


def test_two_of_a_run_trust_each_other(authority: Authority, tmp_path: Path) -> None:
    server, client = authority.issue("host1", ["127.0.0.1"]), authority.issue("driver", ["10.0.0.1"])
    assert shake(tmp_path, server, client) == "welcome"


def test_each_may_dial_the_other(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.issue("host1", ["127.0.0.1"]), authority.issue("host2", ["127.0.0.1"])
    assert shake(tmp_path, one, other) == shake(tmp_path, other, one) == "welcome"


def test_nobody_comes_without_a_certificate(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        shake(tmp_path, authority.issue("host1", ["127.0.0.1"]), None)


def test_another_run_s_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority.new("made-2026").issue("driver", ["127.0.0.1"])  # even of the same name
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        shake(tmp_path, authority.issue("host1", ["127.0.0.1"]), stranger, trusts=authority.certificate)


def test_another_run_s_server_is_refused(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority.new("made-2026").issue("host1", ["127.0.0.1"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(tmp_path, stranger, authority.issue("driver", []), trusts=authority.certificate)


def test_a_certificate_cannot_issue_others(authority: Authority, tmp_path: Path) -> None:
    member = authority.issue("host1", ["127.0.0.1"])
    forged = Authority.load(member.certificate + member.key).issue("host2", ["127.0.0.1"])
    forged = Membership(forged.certificate + member.certificate, forged.key, authority.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(tmp_path, forged, authority.issue("driver", []))


@pytest.mark.parametrize(
    ("addresses", "dialled"),
    [
        (["10.0.0.2", "127.0.0.1"], "127.0.0.1"),
        (["::1"], "::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["gpu01.cluster.example."], "gpu01.cluster.example"),
        (["gpu_01"], "gpu_01"),
    ],
)
def test_a_host_is_known_by_each_of_its_addresses(
    authority: Authority, tmp_path: Path, addresses: list[str], dialled: str
) -> None:
    server = authority.issue("host1", addresses)
    assert shake(tmp_path, server, authority.issue("driver", []), dialled=dialled) == "welcome"


def test_a_host_is_not_taken_for_another(authority: Authority, tmp_path: Path) -> None:
    server = authority.issue("10.0.0.3", ["10.0.0.2"])  # its name counts for nothing
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        shake(tmp_path, server, authority.issue("driver", []), dialled="10.0.0.3")


@pytest.mark.parametrize("address", ["gpü.example", "gpu01\u2024example"])
def test_what_is_no_address_is_told(authority: Authority, address: str) -> None:
    with pytest.raises(UsageError, match="neither an IP address nor a DNS name"):
        authority.issue("host1", [address])


def test_a_long_name_is_cut(authority: Authority) -> None:
    authority.issue("h" * 200, ["127.0.0.1"])
    Authority.new("r" * 200)


def test_clocks_may_be_a_day_off(authority: Authority) -> None:
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    for pem in (authority.certificate, authority.issue("host1", ["127.0.0.1"]).certificate):
        certificate = x509.load_pem_x509_certificate(pem.encode())
        assert certificate.not_valid_before_utc <= now - day
        assert now + LIFETIME + day <= certificate.not_valid_after_utc <= now + LIFETIME + 2 * day


def test_it_comes_back_from_what_it_dumped(authority: Authority, tmp_path: Path) -> None:
    later = Authority.load(authority.dump())
    assert later.certificate == authority.certificate
    server, client = authority.issue("host1", ["127.0.0.1"]), later.issue("driver", [])
    assert shake(tmp_path, server, client) == "welcome"


def test_another_text_is_no_authority(authority: Authority) -> None:
    with pytest.raises(ValueError):
        Authority.load("nothing of the kind")
    with pytest.raises(ValueError):
        Authority.load(authority.certificate)  # without its key


def test_no_repr_shows_a_key(authority: Authority) -> None:
    identity = authority.issue("host1", ["127.0.0.1"])
    shown = f"{identity!r} {identity} {authority!r} {vars(authority)!r}"
    for key in (identity.key, authority.dump()):
        secret = "".join(key.partition("-----BEGIN PRIVATE KEY-----")[2].splitlines()[:-1])
        assert len(secret) > 100
        assert secret[:40] not in shown
        assert "PRIVATE" not in shown
