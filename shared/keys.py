"""Keys: what a site is known by, in the form that Flower's SuperNode takes, and what is signed with it.

in        random numbers of the operating system; files in OpenSSH's form
out       a private key's text, a public key's line, its fingerprint, signatures; a certificate and its fingerprint
relies on cryptography for ECDSA over P-384; no other curve or kind of key is taken
"""

import base64
import hashlib
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.errors import ConfigError

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
_ALLOWED = "an ECDSA key on the curve P-384, as `motet site init` makes one"
_DIGEST = hashes.SHA384()


def new_key() -> PrivateKey:
    """A key that nobody has had before."""
    return ec.generate_private_key(ec.SECP384R1())


def private_text(key: PrivateKey) -> bytes:
    """A private key as a file in OpenSSH's form; not encrypted, because nobody is there to type a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate, such as the one of a deployment's authority.

    Raises:
        ConfigError: the file is not there, or is no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); allowed: a certificate in PEM form") from None
    except ValueError:
        raise ConfigError(
            f"{path}: no certificate; allowed: a file in PEM form, as `motet server init` makes"
        ) from None


def certificate_fingerprint(path: Path) -> str:
    """SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it.

    Raises:
        ConfigError: it is no certificate.
    """
    digest = read_certificate(path).fingerprint(hashes.SHA256()).hex().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def public_line(key: PublicKey, *, name: str) -> str:
    """A public key as a line in OpenSSH's form, with a name behind it."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{line.decode('ascii')} {name}\n"


def public_pem(key: PublicKey) -> str:
    """A public key as Flower registers it."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def fingerprint(key: PublicKey) -> str:
    """As `ssh-keygen -l` shows it."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode('ascii').rstrip('=')}"


def read_private(path: Path) -> PrivateKey:
    """The private key in a file.

    Raises:
        ConfigError: it cannot be read, or is of another kind.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read ({error.strerror}); allowed: {_ALLOWED}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: no private key without a password; allowed: {_ALLOWED}") from None
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path}: a key of another kind; allowed: {_ALLOWED}")
    return key


def read_public(path: Path) -> tuple[PublicKey, str]:
    """The public key in a file of one line, and the name behind it; an empty one where there is none.

    Raises:
        ConfigError: it cannot be read, holds more than one line, or a key of another kind.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise ConfigError(f"{path}: not there; name the file NAME.pub that the site handed over") from None
    except OSError as error:
        raise ConfigError(f"{path}: the public key cannot be read ({error.strerror}); allowed: {_ALLOWED}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: no public key in OpenSSH's form; allowed: {_ALLOWED}") from None
    if any("PRIVATE KEY" in line for line in lines):
        raise ConfigError(f"{path}: a private key, which never leaves its site; allowed: the file that ends in .pub")
    if len(lines) != 1:
        raise ConfigError(f"{path}: {len(lines)} lines; allowed: one line, the public key and the site's name")
    words = lines[0].split(maxsplit=2)
    try:
        key = serialization.load_ssh_public_key(" ".join(words[:2]).encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{path}: no public key in OpenSSH's form; allowed: {_ALLOWED}") from None
    if not isinstance(key, PublicKey):
        raise ConfigError(f"{path}: a key of another kind ({words[0]}); allowed: {_ALLOWED}")
    if not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path}: a key on the curve {key.curve.name}; allowed: {_ALLOWED}")
    return key, words[2].strip() if len(words) == 3 else ""


def sign(key: PrivateKey, text: bytes) -> str:
    """A signature as hexadecimal digits."""
    return key.sign(text, ec.ECDSA(_DIGEST)).hex()


def is_signed(text: bytes, *, signature: str, key: PublicKey) -> bool:
    """Whether whoever has the private half signed exactly this."""
    try:
        key.verify(bytes.fromhex(signature), text, ec.ECDSA(_DIGEST))
    except (InvalidSignature, ValueError):
        return False
    return True


def write_secret(path: Path, text: bytes) -> None:
    """A file that only its owner reads, from the first byte on; one that is there is not written over.

    Raises:
        ConfigError: there is a file already.
    """
    try:
        # PRIVACY: never readable by others, not even between open and chmod. test_secrets_are_their_owners_alone
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already and is not written over; move it away first") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
