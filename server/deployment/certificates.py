"""Certificates: an authority of the deployment's own, and the server's certificate by it.

in        the names and addresses by which the server is reached
out       ca.key, ca.crt, server.key, server.pem; ECDSA over P-384, SHA-384
relies on cryptography for X.509
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.settings import write_atomically
from shared.errors import ConfigError
from shared.keys import read_certificate, write_secret

CA_DAYS, SERVER_DAYS = 3650, 397
_BACKDATED = dt.timedelta(hours=1)
"""a site's clock may be a little behind"""


def make_authority(folder: Path) -> None:
    """ca.key, which only its owner reads, and ca.crt, which every site gets.

    Raises:
        ConfigError: there is one already.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("Motet deployment")
    made = (
        _builder(name, issuer=name, key=key.public_key(), days=CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    write_secret(folder / "ca.key", _pem(key))
    write_atomically(folder / "ca.crt", made.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(folder: Path, *, names: Sequence[str]) -> None:
    """server.pem with a key of its own, new each time.

    Args:
        names: host names and addresses of the server.

    Raises:
        ConfigError: the authority's files are not there or do not belong together.
    """
    authority, authority_key = _authority(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    made = (
        _builder(_name(names[0]), issuer=authority.subject, key=key.public_key(), days=SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in dict.fromkeys(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    (folder / "server.key").unlink(missing_ok=True)
    write_secret(folder / "server.key", _pem(key))
    write_atomically(folder / "server.pem", made.public_bytes(serialization.Encoding.PEM))


def expires(path: Path) -> dt.datetime:
    """When a certificate stops being valid.

    Raises:
        ConfigError: it is no certificate.
    """
    return read_certificate(path).not_valid_after_utc


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    found = read_certificate(folder / "ca.crt")
    try:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"{folder}/ca.key: not readable; put the authority's key there for as long as a certificate is made"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != found.public_key():
        raise ConfigError(f"{folder}/ca.key: not the key of ca.crt; allowed: the two that were made together")
    return found, key


def _builder(
    subject: x509.Name, *, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
