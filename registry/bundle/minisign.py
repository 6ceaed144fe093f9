"""Keys and signatures in the format of minisign: Ed25519 over a BLAKE2b digest, in small text files.

See https://jedisct1.github.io/minisign/. Recipients can verify with `minisign -V`. Stricter than minisign: a signature
file must be byte for byte what this module or minisign writes, so that its unsigned comment cannot be changed either.
"""

import base64
import hashlib
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_KEY, _SIGNATURE, _NO_KDF, _CHECKSUM = b"Ed", b"ED", b"\0\0", b"B2"
_KDF_BYTES, _CHECKSUM_BYTES = 32 + 8 + 8, 32
_COMMENT, _TRUSTED = "untrusted comment: ", "trusted comment: "
# The accepted unsigned comments: ours and minisign's.
SIGNED_BY = "signature from a gpu-cluster registry"
_COMMENTS = frozenset({SIGNED_BY, "signature from minisign secret key"})
# Limit for key and signature files, in bytes.
MAX_FILE = 4096


class SignatureError(Exception):
    """A key is unusable, or a signature is invalid; the message says what to do."""


@dataclass(frozen=True)
class PublicKey:
    """A public key. `id` is minisign's key ID, 16 hex digits."""

    id: str
    raw: bytes

    @property
    def text(self) -> str:
        """The key in one line, as for `minisign -P`."""
        return _encode(_KEY + _id_bytes(self.id) + self.raw)

    def verify(self, message: bytes, signature: bytes, *, name: str) -> str:
        """Verify the content of a .minisig file; return its trusted comment. Raises SignatureError."""
        parsed = _Signature.parse(signature, name)
        if parsed.key_id != self.id:
            raise SignatureError(
                f"{name} is signed with key {parsed.key_id}, not with the given key {self.id}. "
                "Give the signer's public key, or do not trust this file."
            )
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        try:
            key.verify(parsed.signature, _digest(message))
            key.verify(parsed.global_signature, parsed.signature + parsed.trusted.encode())
        except InvalidSignature:
            raise SignatureError(
                f"The signature of {name} is invalid: the file or its signature was changed after signing."
            ) from None
        return parsed.trusted


@dataclass(frozen=True)
class SecretKey:
    """A secret key, stored without a password like that of `minisign -G -W`."""

    id: str
    seed: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "SecretKey":
        """Generate a new key."""
        return cls(_show_id(secrets.token_bytes(8)), secrets.token_bytes(32))

    @property
    def public(self) -> PublicKey:
        """The public key."""
        return PublicKey(self.id, self._key().public_key().public_bytes_raw())

    def sign(self, message: bytes, trusted_comment: str) -> bytes:
        """Return the content of a .minisig file for `message`; the one-line comment is signed too."""
        if "\n" in trusted_comment or not trusted_comment.isprintable():
            raise ValueError("the trusted comment must be one printable line")
        signature = self._key().sign(_digest(message))
        global_signature = self._key().sign(signature + trusted_comment.encode())
        return _Signature(self.id, signature, trusted_comment, global_signature, SIGNED_BY).text()

    def write(self, path: Path) -> None:
        """Write the key to a new file with mode 0600. Raises FileExistsError, OSError."""
        head = _KEY + _NO_KDF + _CHECKSUM + bytes(_KDF_BYTES)
        blob = head + _id_bytes(self.id) + self.seed + self.public.raw + bytes(_CHECKSUM_BYTES)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{_COMMENT}minisign secret key {self.id}\n{_encode(blob)}\n")

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def write_public(key: PublicKey, path: Path) -> None:
    """Write the key to a new file. Raises FileExistsError, OSError."""
    with path.open("x") as file:
        file.write(f"{_COMMENT}minisign public key {key.id}\n{key.text}\n")


def read_public(key_or_path: str) -> PublicKey:
    """Read a public key, given as text or as the path of its file. Raises SignatureError."""
    text = key_or_path.strip()
    blob = _decode(text) if len(text) == 56 else None
    if blob is None:
        blob = _decode(_second_line(Path(key_or_path), "a public key"))
    if blob is None or len(blob) != 42 or blob[:2] != _KEY:
        raise SignatureError(f"{key_or_path} is not a public key. `registry keygen` writes one as NAME.pub.")
    return PublicKey(_show_id(blob[2:10]), blob[10:])


def read_secret(path: Path) -> SecretKey:
    """Read a secret key from a file, or from stdin if `path` is `-`. Raises SignatureError."""
    blob = _decode(_second_line(path, "a secret key"))
    if blob is None or len(blob) != 158 or blob[:2] != _KEY or blob[4:6] != _CHECKSUM:
        raise SignatureError(f"{path} is not a secret key. `registry keygen` writes one as NAME.key.")
    if blob[2:4] != _NO_KDF:
        raise SignatureError(f"{path} is protected by a password. Create a key without one: registry keygen.")
    key = SecretKey(_show_id(blob[54:62]), blob[62:94])
    if key.public.raw != blob[94:126]:  # minisign writes no checksum without a password
        raise SignatureError(f"{path} is damaged. Restore it, or create a new key: registry keygen.")
    return key


@dataclass(frozen=True)
class _Signature:
    """The content of a .minisig file."""

    key_id: str
    signature: bytes
    trusted: str
    global_signature: bytes
    comment: str

    def text(self) -> bytes:
        first = _encode(_SIGNATURE + _id_bytes(self.key_id) + self.signature)
        return (
            f"{_COMMENT}{self.comment}\n{first}\n{_TRUSTED}{self.trusted}\n{_encode(self.global_signature)}\n"
        ).encode()

    @classmethod
    def parse(cls, data: bytes, name: str) -> "_Signature":
        invalid = SignatureError(f"The signature file of {name} is not in minisign's format, or was changed.")
        try:
            comment, first, trusted, second, rest = data.decode().split("\n")
        except ValueError:
            raise invalid from None
        blob, global_signature = _decode(first), _decode(second)
        if blob is None or len(blob) != 74 or global_signature is None or len(global_signature) != 64 or rest:
            raise invalid
        parsed = cls(
            _show_id(blob[2:10]),
            blob[10:],
            trusted.removeprefix(_TRUSTED),
            global_signature,
            comment.removeprefix(_COMMENT),
        )
        if parsed.text() != data or parsed.comment not in _COMMENTS:
            raise invalid
        return parsed


def _digest(message: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=64).digest()


def _show_id(id_bytes: bytes) -> str:
    return f"{int.from_bytes(id_bytes, 'little'):016X}"


def _id_bytes(id: str) -> bytes:
    return int(id, 16).to_bytes(8, "little")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _second_line(path: Path, what: str) -> str:
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            lines = file.read(MAX_FILE).decode().splitlines()
    except OSError as error:
        raise SignatureError(f"{path} cannot be read as {what}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SignatureError(f"{path} is not {what}.") from error
    return lines[1].strip() if len(lines) > 1 else ""
