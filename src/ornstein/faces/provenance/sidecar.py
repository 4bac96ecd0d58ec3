"""The provenance of files that carry no C2PA manifest (.webm, .mkv): a signed statement in a file beside them.

`film.webm.provenance.json` holds the statement, the SHA-256 of the film, this machine's certificates and an ECDSA
signature (ES256) over the first two. It is lost where the film goes without it.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.faces.provenance import signing
from ornstein.store import atomic_write, file_hash, read_json

__all__ = ["SIDECARS", "sidecar_of", "verified", "write"]

SIDECARS = (".webm", ".mkv")
"""The kinds of files whose provenance is beside them."""
_ENDING = ".provenance.json"


def sidecar_of(path: Path) -> Path:
    """The file with the provenance of the film `path`."""
    return path.with_name(path.name + _ENDING)


def write(film: Path, name: Path, statement: dict[str, Any]) -> None:
    """Write the signed statement of the film `film`, which will be named `name`, beside that name."""
    require("cryptography", "faces", "a signature")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    owner = signing.credentials()
    signed = {"file_sha256": file_hash(film).hexdigest(), "statement": statement}
    key = serialization.load_pem_private_key(owner.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(_bytes(signed), ec.ECDSA(hashes.SHA256()))
    chain = owner.chain.decode()
    stored = signed | {"certificates": chain, "signature": base64.b64encode(signature).decode()}
    atomic_write(sidecar_of(name), json.dumps(stored, indent=1).encode())


def verified(film: Path) -> tuple[dict[str, Any], str, bool, list[str]] | None:
    """What is stated beside a film: the statement, the signer, whether it is this machine's key, and what is wrong.

    None if there is no such file.

    Raises:
        UserError: it is damaged, or no signed statement.
    """
    path = sidecar_of(film)
    if not path.is_file():
        return None
    require("cryptography", "faces", "a signature")
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    stored = read_json(path)
    try:
        certificate = x509.load_pem_x509_certificate(str(stored["certificates"]).encode())
        signature = base64.b64decode(stored["signature"], validate=True)
        signed = {name: stored[name] for name in ("file_sha256", "statement")}
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(signed["statement"], dict):
            raise ValueError("another kind of key or statement")
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no signed statement: {error}") from None
    wrong = []
    try:
        key.verify(signature, _bytes(signed), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        wrong.append("the statement does not match its signature")
    if file_hash(film).hexdigest() != signed["file_sha256"]:
        wrong.append("the film is not the one that was signed")
    owner = signing.existing()
    ours = owner is not None and x509.load_pem_x509_certificate(owner.chain) == certificate and not wrong
    signer = f"{certificate.subject.rfc4514_string()}, certificate {certificate.serial_number}"
    return signed["statement"], signer, ours, wrong


def _bytes(signed: dict[str, Any]) -> bytes:
    return json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
