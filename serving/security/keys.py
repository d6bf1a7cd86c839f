"""The keys that sign and verify tokens: Ed25519, each with an id (`kid`), rotated without a pause.

    keys/keys.json      the public keys: all that a service needs which only verifies
    keys/<kid>.pem      the newest private key (mode 0600): only where tokens are issued

The newest key signs; every key that is not retired verifies.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from algospace.errors import ConfigError
from serving.security.guarded_files import (
    PUBLIC,
    SECRET,
    locked,
    read_guarded,
    read_guarded_json,
    write_guarded,
    write_guarded_json,
)

_FILE = "keys.json"
_FIX = "make it with 'algospace keys rotate'"


@dataclass(frozen=True)
class PublicKey:
    """One public key. `created`: seconds since 1970."""

    kid: str
    key: Ed25519PublicKey
    created: float
    retired: bool


@dataclass(frozen=True)
class KeyRing:
    """All public keys, oldest first."""

    keys: tuple[PublicKey, ...]

    def verifying(self) -> dict[str, Ed25519PublicKey]:
        """kid -> key, of those that are not retired."""
        return {key.kid: key.key for key in self.keys if not key.retired}

    @property
    def newest(self) -> PublicKey:
        """The key that signs."""
        return self.keys[-1]


def key_ring_file(folder: Path) -> Path:
    """Where the public keys of a key folder are."""
    return folder / _FILE


def read_key_ring(path: Path) -> KeyRing:
    """The public keys of a file; ConfigError names a fault in one line."""
    values = read_guarded_json(path, "key ring", PUBLIC, _FIX)
    try:
        keys = tuple(PublicKey(str(item["kid"]), Ed25519PublicKey.from_public_bytes(_unpack(item["public"])),
                               float(item["created"]), item["retired"] is not False) for item in values["keys"])
    except (KeyError, TypeError, ValueError, binascii.Error):
        keys = ()
    if not keys or any(key.kid != _kid(key.key) for key in keys) or keys[-1].retired:
        raise ConfigError(f"{path}: the key ring is damaged; {_FIX}")
    return KeyRing(keys)


def read_private_key(folder: Path, key: PublicKey) -> Ed25519PrivateKey:
    """The private half of `key`; ConfigError if it is not here, readable by others, or of another key."""
    path = folder / f"{key.kid}.pem"
    raw = read_guarded(path, "private key", SECRET, "tokens are issued only where the private key is")
    try:
        private = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey) or _kid(private.public_key()) != key.kid:
        raise ConfigError(f"{path}: not the private key of {key.kid}; {_FIX}")
    return private


def rotate(folder: Path, clock: Callable[[], float] = time.time) -> str:
    """Add a key, which signs from now on; earlier keys keep verifying. The new key's id.

    Earlier private keys are deleted: nothing signs with them any more.
    """
    path = key_ring_file(folder)
    with locked(path):
        before = read_key_ring(path).keys if path.exists() else ()
        private = Ed25519PrivateKey.generate()
        new = PublicKey(_kid(private.public_key()), private.public_key(), clock(), False)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_guarded(folder / f"{new.kid}.pem", pem, SECRET)  # first: a ring never names a key that is not there
        _write(path, (*before, new))
        for key in before:
            (folder / f"{key.kid}.pem").unlink(missing_ok=True)
    return new.kid


def retire(folder: Path, kid: str) -> None:
    """Stop believing tokens of key `kid`; ConfigError for an unknown key and for the one that signs."""
    path = key_ring_file(folder)
    with locked(path):
        keys = read_key_ring(path).keys
        if kid not in {key.kid for key in keys}:
            raise ConfigError(f"{path}: no key {kid}; it has {', '.join(key.kid for key in keys)}")
        if kid == keys[-1].kid:
            raise ConfigError(f"{path}: {kid} signs; run 'algospace keys rotate' first")
        _write(path, tuple(replace(key, retired=key.retired or key.kid == kid) for key in keys))


def _write(path: Path, keys: tuple[PublicKey, ...]) -> None:
    rows = [{"kid": key.kid, "public": _pack(key.key), "created": key.created, "retired": key.retired}
            for key in keys]
    write_guarded_json(path, {"keys": rows}, PUBLIC)


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _kid(key: Ed25519PublicKey) -> str:
    """A key's id follows from the key: an altered key is found."""
    return hashlib.sha256(_raw(key)).hexdigest()[:16]


def _pack(key: Ed25519PublicKey) -> str:
    return base64.urlsafe_b64encode(_raw(key)).decode()


def _unpack(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"-_", validate=True)
