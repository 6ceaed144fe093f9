"""Keys and signatures: compatible with minisign; any change is rejected."""

import stat
from pathlib import Path

import pytest

from registry.bundle.minisign import SecretKey, SignatureError, read_public, read_secret, write_public

# Made by minisign 0.11: `minisign -G -W`, then `minisign -S -t "hey there"` of the message "hello\n".
MESSAGE = b"hello\n"
PUBLIC = "RWTZ9KwiUHfywJxi/iJwXFq39RKxr7jaNoWBwqLYkSf8Laj8Yj5Co6J8"
SIGNED = b"""\
untrusted comment: signature from minisign secret key
RUTZ9KwiUHfywJH9/w/uK8fMcn0KXFIIiDv8aDwKj2XlUzWOTnP2LSfkdpJaUaG0F41UhdMExpIVo43bAt15j1lJn75wav6s/AU=
trusted comment: hey there
/e8vKTScX9phhnRuuraZrAc26G25LEXEH6mV7uMaj0xDwAGUXKMbaGVIlPIkrxnTes7C1TjEqypslBM+LRr/Dw==
"""
SECRET = """\
untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA2fSsIlB38sAeiUIN1fYU2Aj8DUEVwVw3QjtY2XX0rgVGfDuvOOwf0Jxi/iJwXFq39RKxr7jaNoWBwqLYkSf8Laj8Yj5Co6J8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""  # as minisign wrote it


def test_signature_of_minisign_is_valid() -> None:
    assert read_public(PUBLIC).verify(MESSAGE, SIGNED, name="f") == "hey there"


def test_our_signature_equals_that_of_minisign(tmp_path: Path) -> None:
    """Ed25519 is deterministic: with the same key the signature is the same, byte for byte."""
    (tmp_path / "a.key").write_text(SECRET)
    key = read_secret(tmp_path / "a.key")
    assert key.public.text == PUBLIC
    assert key.sign(MESSAGE, "hey there").splitlines()[1:] == SIGNED.splitlines()[1:]


def test_keys_round_trip_through_files(tmp_path: Path) -> None:
    """The secret key has mode 0600, and no file is overwritten."""
    key = SecretKey.generate()
    key.write(tmp_path / "a.key")
    write_public(key.public, tmp_path / "a.pub")
    assert read_secret(tmp_path / "a.key") == key
    assert read_public(str(tmp_path / "a.pub")) == key.public
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert key.seed.hex() not in repr(key)
    with pytest.raises(FileExistsError):
        key.write(tmp_path / "a.key")


@pytest.mark.parametrize("at", range(len(SIGNED)))
def test_any_changed_byte_of_a_signature_is_rejected(at: int) -> None:
    """The unsigned comment included."""
    changed = bytearray(SIGNED)
    changed[at] ^= 1
    with pytest.raises(SignatureError):
        read_public(PUBLIC).verify(MESSAGE, bytes(changed), name="f")


def test_other_message_and_other_key_are_rejected() -> None:
    with pytest.raises(SignatureError, match="The signature of f is invalid"):
        read_public(PUBLIC).verify(b"hello", SIGNED, name="f")
    other = SecretKey.generate()
    with pytest.raises(SignatureError, match=f"f is signed with key C0F2775022ACF4D9, not with .* {other.id}"):
        other.public.verify(MESSAGE, SIGNED, name="f")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not a public key"),
        ("untrusted comment: x\nAAAA\n", "is not a public key"),
        ("\xff", "is not a public key"),
        (None, "cannot be read as a public key"),
    ],
)
def test_invalid_public_key_is_rejected(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "x.pub"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SignatureError, match=says):
        read_public(str(path))


def test_invalid_secret_key_is_rejected(tmp_path: Path) -> None:
    """A public key, a key with a password, a key pair that does not match."""
    path = tmp_path / "x.key"
    line = SECRET.splitlines()[1]
    for content, says in [
        (PUBLIC, "is not a secret key"),
        (line.replace("RWQAAEIy", "RWRTY0Iy"), "protected by a password"),
        (line.replace("UIN1fYU2", "UIN1gYU2"), "is damaged"),
    ]:
        path.write_text(f"untrusted comment: x\n{content}\n")
        with pytest.raises(SignatureError, match=says):
            read_secret(path)
