"""The key that signs this machine's swaps: made once, kept in the user's configuration, never sent anywhere."""

from __future__ import annotations

import contextlib
import datetime
import os
from dataclasses import dataclass
from pathlib import Path

import typer

from ornstein.errors import RunError
from ornstein.extras import require
from ornstein.store import atomic_write, write_error

__all__ = ["ALGORITHM", "FILE", "Credentials", "credentials", "existing", "folder"]

ALGORITHM = "es256"
FILE = "swap-key.pem"  # the private key, its certificate and the root's
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_YEARS = 20
_ORGANISATION = "Ornstein, a key made on this machine"


@dataclass(frozen=True, repr=False)
class Credentials:
    """An ES256 private key and its certificate with the root that signed it, all PEM; `serial` is the certificate's."""

    key: bytes
    chain: bytes
    serial: str

    @property
    def root(self) -> str:
        """The root certificate, PEM."""
        return self.chain[self.chain.rindex(_CERTIFICATE) :].decode()


def folder() -> Path:
    """The user's configuration folder: $XDG_CONFIG_HOME/ornstein, or the system's equivalent."""
    return Path(typer.get_app_dir("ornstein"))


def credentials(where: Path | None = None) -> Credentials:
    """The key and certificates in the folder `where`, by default the user's own; made there if there are none.

    The root's own key is thrown away once it has signed: no second certificate can ever be made under it.

    Raises:
        RunError: the folder cannot be written, or what lies there is damaged.
    """
    place = folder() if where is None else where
    found = existing(place)
    if found is not None:
        return found
    mine = place / f".{os.getpid()}.{FILE}"
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(mine, _made(), mode=0o600)
        # Of two processes that begin at once one makes the key, and both use it.
        with contextlib.suppress(FileExistsError):
            os.link(mine, place / FILE)
    except OSError as error:
        raise write_error(place / FILE, error) from error
    finally:
        mine.unlink(missing_ok=True)
    found = existing(place)
    assert found is not None
    return found


def existing(place: Path | None = None) -> Credentials | None:
    """The key and certificates in the folder; None if there are none. Raises RunError if they are damaged."""
    path = (folder() if place is None else place) / FILE
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read the signing key {path}: {error.strerror or error}") from None
    x509, serialization = (
        require("cryptography.x509", "faces"),
        require("cryptography.hazmat.primitives.serialization", "faces"),
    )
    try:
        at = stored.index(_CERTIFICATE)
        key, chain = stored[:at], stored[at:]
        leaf, _ = x509.load_pem_x509_certificates(chain)
        if serialization.load_pem_private_key(key, None).public_key() != leaf.public_key():
            raise ValueError("the certificate is not this key's")
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"the signing key {path} is damaged: move it away and a new one is made ({reason})") from None
    return Credentials(key, chain, str(leaf.serial_number))


def _made() -> bytes:
    """A new key, its certificate and the root's. C2PA 2.2, section 14.5.1, says what a certificate needs; RFC 5280."""
    x509, serialization = (
        require("cryptography.x509", "faces"),
        require("cryptography.hazmat.primitives.serialization", "faces"),
    )
    ec, hashes = (
        require("cryptography.hazmat.primitives.asymmetric.ec", "faces"),
        require("cryptography.hazmat.primitives.hashes", "faces"),
    )
    now = datetime.datetime.now(datetime.UTC)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def named(common: str) -> object:
        oid = x509.oid.NameOID
        pairs = ((oid.COMMON_NAME, common), (oid.ORGANIZATION_NAME, _ORGANISATION))
        return x509.Name([x509.NameAttribute(kind, text) for kind, text in pairs])

    def certificate(subject: object, public: object, root: bool) -> object:
        usage = {"key_encipherment", "content_commitment", "data_encipherment", "key_agreement"}
        usage |= {"encipher_only", "decipher_only"}
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(named("Ornstein root"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
            .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
            .add_extension(x509.BasicConstraints(root, 0 if root else None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not root, key_cert_sign=root, crl_sign=root, **dict.fromkeys(usage, False)
                ),
                True,
            )
        )
        if not root:
            purposes = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purposes, False)
        return builder.sign(root_key, hashes.SHA256())

    certificates = (
        certificate(named("Ornstein swap"), key.public_key(), False),
        certificate(named("Ornstein root"), root_key.public_key(), True),
    )
    chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)  # pyright: ignore[reportAttributeAccessIssue]
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form) + chain
