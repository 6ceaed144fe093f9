"""Signatures that `minisign` makes and checks: Ed25519 over a BLAKE2b digest, keys and signatures in small text files.

The format: https://jedisct1.github.io/minisign/. Chosen because who receives a signed file can check it with a program
of theirs, `minisign -V`, and because all that it takes is Ed25519 of `cryptography`. Stricter than minisign in one way:
a signature file is taken only if it is byte for byte what this module or minisign would have written, so that not even
its unsigned comment can be changed unseen.
"""

import base64
import binascii
import hashlib
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_KEY, _SIGNATURE, _NO_KDF, _CHECKSUM = b"Ed", b"ED", b"\0\0", b"B2"
_KDF_BYTES, _CHECKSUM_BYTES = 32 + 8 + 8, 32
_COMMENT, _TRUSTED = "untrusted comment: ", "trusted comment: "
# What an unsigned comment may say: ours, and minisign's own.
SIGNED_BY = "signature from a gpu-cluster registry"
_COMMENTS = frozenset({SIGNED_BY, "signature from minisign secret key"})
# No key or signature file comes near this.
MAX_FILE = 4096


class SignatureError(Exception):
    """A key cannot be used, or a signature is not that of the key; the message says which and what to do."""


@dataclass(frozen=True)
class PublicKey:
    """Checks signatures. `id` is the number by which minisign shows the key, 16 hex digits."""

    id: str
    raw: bytes

    @property
    def text(self) -> str:
        """The key in one line, as `minisign -P` takes it."""
        return _encode(_KEY + _id_bytes(self.id) + self.raw)

    def verify(self, message: bytes, signature: bytes, *, name: str) -> str:
        """The trusted comment of `signature`, the content of a .minisig file for `message`. `name` is for messages.

        Raises SignatureError.
        """
        parsed = _Signature.parse(signature, name)
        if parsed.key_id != self.id:
            raise SignatureError(
                f"{name} is signed with key {parsed.key_id}, not with the given key {self.id}. "
                "Give the public key of who made it, or do not trust it."
            )
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        try:
            key.verify(parsed.signature, _digest(message))
            key.verify(parsed.global_signature, parsed.signature + parsed.trusted.encode())
        except InvalidSignature:
            raise SignatureError(
                f"The signature of {name} is wrong: it or its signature file was changed after it was signed."
            ) from None
        return parsed.trusted


@dataclass(frozen=True)
class SecretKey:
    """Signs. Kept in a file without a password, as `minisign -G -W` writes it: who can read the file can sign."""

    id: str
    seed: bytes

    def __repr__(self) -> str:
        return f"SecretKey({self.id})"

    @classmethod
    def generate(cls) -> "SecretKey":
        """A new key."""
        return cls(_show_id(secrets.token_bytes(8)), secrets.token_bytes(32))

    @property
    def public(self) -> PublicKey:
        """Its other half."""
        return PublicKey(self.id, self._key().public_key().public_bytes_raw())

    def sign(self, message: bytes, trusted_comment: str) -> bytes:
        """The content of a .minisig file for `message`. The comment, one line, is signed along."""
        if "\n" in trusted_comment or not trusted_comment.isprintable():
            raise ValueError("a trusted comment is one line")
        signature = self._key().sign(_digest(message))
        global_signature = self._key().sign(signature + trusted_comment.encode())
        return _Signature(self.id, signature, trusted_comment, global_signature, SIGNED_BY).text()

    def write(self, path: Path) -> None:
        """Write the key to a new file that only this user may read. Raises FileExistsError, OSError."""
        head = _KEY + _NO_KDF + _CHECKSUM + bytes(_KDF_BYTES)
        blob = head + _id_bytes(self.id) + self.seed + self.public.raw + bytes(_CHECKSUM_BYTES)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{_COMMENT}minisign secret key {self.id}\n{_encode(blob)}\n")

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def write_public(key: PublicKey, path: Path) -> None:
    """Write the key to a new file, to be handed to whoever checks. Raises FileExistsError, OSError."""
    with path.open("x") as file:
        file.write(f"{_COMMENT}minisign public key {key.id}\n{key.text}\n")


def read_public(given: str) -> PublicKey:
    """The public key that `given` is: the key itself in one line, or the path of its file. Raises SignatureError."""
    text = given.strip()
    blob = _decode(text) if len(text) == 56 else None
    if blob is None:
        blob = _decode(_second_line(Path(given), "a public key"))
    if blob is None or len(blob) != 42 or blob[:2] != _KEY:
        raise SignatureError(f"{given} is no public key. `registry keygen` and `minisign -G` write them as NAME.pub.")
    return PublicKey(_show_id(blob[2:10]), blob[10:])


def read_secret(path: Path) -> SecretKey:
    """The secret key in a file; `-` is stdin. Raises SignatureError."""
    blob = _decode(_second_line(path, "a secret key"))
    if blob is None or len(blob) != 158 or blob[:2] != _KEY or blob[4:6] != _CHECKSUM:
        raise SignatureError(f"{path} is no secret key. `registry keygen` writes one as NAME.key.")
    if blob[2:4] != _NO_KDF:
        raise SignatureError(f"{path} is protected by a password. Make a key for this: registry keygen.")
    key = SecretKey(_show_id(blob[54:62]), blob[62:94])
    if key.public.raw != blob[94:126]:  # minisign itself leaves the checksum empty where there is no password
        raise SignatureError(f"{path} is damaged. Restore it, or make a new key: registry keygen.")
    return key


@dataclass(frozen=True)
class _Signature:
    """What a .minisig file holds."""

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
        wrong = SignatureError(
            f"The signature file of {name} was changed, or is none: it is not as minisign writes it."
        )
        try:
            lines = data.decode().split("\n")
            comment, first, trusted, second, rest = lines
        except ValueError:
            raise wrong from None
        blob, global_signature = _decode(first), _decode(second)
        if blob is None or len(blob) != 74 or global_signature is None or len(global_signature) != 64 or rest:
            raise wrong
        parsed = cls(
            _show_id(blob[2:10]),
            blob[10:],
            trusted.removeprefix(_TRUSTED),
            global_signature,
            comment.removeprefix(_COMMENT),
        )
        if parsed.text() != data or parsed.comment not in _COMMENTS:
            raise wrong
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
    except (binascii.Error, ValueError):
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
