"""Keys and signatures: what minisign wrote is read, what was changed is refused."""

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
"""  # as it was written


def test_what_minisign_signed_is_right() -> None:
    """Its key, given as text, and its signature; the comment comes back."""
    assert read_public(PUBLIC).verify(MESSAGE, SIGNED, name="f") == "hey there"


def test_what_we_sign_minisign_would_have_signed(tmp_path: Path) -> None:
    """With minisign's own secret key the signature is the same, byte for byte: Ed25519 leaves no choice."""
    (tmp_path / "a.key").write_text(SECRET)
    key = read_secret(tmp_path / "a.key")
    assert key.public.text == PUBLIC
    assert key.sign(MESSAGE, "hey there").splitlines()[1:] == SIGNED.splitlines()[1:]


def test_keys_survive_their_files(tmp_path: Path) -> None:
    """What is written is read; nobody else may read the secret one, and nothing is overwritten."""
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
def test_no_byte_of_a_signature_can_be_changed(at: int) -> None:
    """Not even of the comment that minisign leaves unsigned."""
    changed = bytearray(SIGNED)
    changed[at] ^= 1
    with pytest.raises(SignatureError):
        read_public(PUBLIC).verify(MESSAGE, bytes(changed), name="f")


def test_another_message_and_another_key_are_refused() -> None:
    """Each with its name."""
    with pytest.raises(SignatureError, match="The signature of f is wrong"):
        read_public(PUBLIC).verify(b"hello", SIGNED, name="f")
    other = SecretKey.generate()
    with pytest.raises(SignatureError, match=f"f is signed with key C0F2775022ACF4D9, not with .* {other.id}"):
        other.public.verify(MESSAGE, SIGNED, name="f")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no public key"),
        ("untrusted comment: x\nAAAA\n", "is no public key"),
        ("\xff", "is no public key"),
        (None, "cannot be read as a public key"),
    ],
)
def test_what_is_no_public_key(tmp_path: Path, content: str | None, says: str) -> None:
    """Is said to be none."""
    path = tmp_path / "x.pub"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SignatureError, match=says):
        read_public(str(path))


def test_what_is_no_secret_key(tmp_path: Path) -> None:
    """A public key, a key with a password, one whose halves do not belong together."""
    path = tmp_path / "x.key"
    line = SECRET.splitlines()[1]
    for content, says in [
        (PUBLIC, "is no secret key"),
        (line.replace("RWQAAEIy", "RWRTY0Iy"), "protected by a password"),
        (line.replace("UIN1fYU2", "UIN1gYU2"), "is damaged"),
    ]:
        path.write_text(f"untrusted comment: x\n{content}\n")
        with pytest.raises(SignatureError, match=says):
            read_secret(path)
