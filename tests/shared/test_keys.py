"""Keys: the form that OpenSSH and Flower's SuperNode take, one curve, and signatures of exactly what was signed."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from shared.errors import ConfigError
from shared.keys import (
    fingerprint,
    is_signed,
    new_key,
    private_text,
    public_line,
    read_private,
    read_public,
    sign,
    write_secret,
)

KEY = new_key()


def ssh_line(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", private_text(KEY))
    (tmp_path / "a.pub").write_text(public_line(KEY.public_key(), name="clinic-a"), encoding="utf-8")
    assert read_private(tmp_path / "key").private_numbers() == KEY.private_numbers()
    public, name = read_public(tmp_path / "a.pub")
    assert public.public_numbers() == KEY.public_key().public_numbers()
    assert name == "clinic-a"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen on this machine")
def test_the_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    path = tmp_path / "a.pub"
    path.write_text(public_line(KEY.public_key(), name="clinic-a"), encoding="utf-8")
    told = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True).stdout
    assert told.split()[:3] == ["384", fingerprint(KEY.public_key()), "clinic-a"]


def test_secrets_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_secret(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="not written over"):
        write_secret(tmp_path / "key", b"other")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        write_secret(tmp_path / "link", b"other")
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_other_curves_are_refused(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    other = ec.generate_private_key(curve)
    (tmp_path / "a.pub").write_text(ssh_line(other.public_key()) + " a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"on the curve {curve.name}; allowed: an ECDSA key on the curve P-384"):
        read_public(tmp_path / "a.pub")
    (tmp_path / "key").write_bytes(private_text(other))
    with pytest.raises(ConfigError, match="a key of another kind"):
        read_private(tmp_path / "key")


def test_what_is_no_public_key_is_refused_with_the_reason(tmp_path: Path) -> None:
    path, good = tmp_path / "a.pub", public_line(KEY.public_key(), name="a")
    for text, said in (
        ("", "0 lines"),
        (good + good, "2 lines"),
        (private_text(KEY).decode(), "a private key, which never leaves its site"),
        (ssh_line(ed25519.Ed25519PrivateKey.generate().public_key()), "another kind"),
        ("ecdsa-sha2-nistp384 AAAA a", "no public key"),
        ("nonsense", "no public key"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            read_public(path)
    with pytest.raises(ConfigError, match=r"none.pub: not there; name the file"):
        read_public(tmp_path / "none.pub")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); allowed"):
        read_public(tmp_path)


def test_a_signature_holds_for_one_text_and_one_key() -> None:
    signature = sign(KEY, b"north")
    assert is_signed(b"north", signature=signature, key=KEY.public_key())
    assert not is_signed(b"south", signature=signature, key=KEY.public_key())
    assert not is_signed(b"north", signature=signature, key=new_key().public_key())
    for garbled in ("", "zz", signature[:-2], signature + "00", "00" * 100):
        assert not is_signed(b"north", signature=garbled, key=KEY.public_key())
