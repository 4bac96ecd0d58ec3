"""The provenance of a picture: a signed C2PA manifest, written and read.

C2PA Technical Specification 2.2. The key is this machine's own: a manifest proves that a file has not changed since it
was signed, by which key, and what was stated then; not who used the machine. It can be stripped, and then says nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ornstein.data.kinds import kind_of_file, open_regular
from ornstein.errors import RunError, UserError
from ornstein.extras import require
from ornstein.faces.provenance import sidecar, signing

__all__ = ["CHANGED", "INTACT", "MIME", "SOURCE_TYPE", "SWAP", "UNSIGNED", "Provenance", "read", "sign"]

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
SWAP = "org.ornstein.swap"
"""The label of our own assertion."""
MIME = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".avif": "image/avif",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
}
INTACT, CHANGED, UNSIGNED = "intact", "changed", "unsigned"


@dataclass(frozen=True)
class Provenance:
    """What a file's manifest states, and whether it holds.

    state: "intact"; "changed", after it was signed, with the `reasons`; or "unsigned", if there is no manifest. signer:
    the certificate's name and serial number. ours: signed by this machine's key. swap: the statement of a swap
    (consent, model, settings, label, hashes), None if the manifest is not of a swap. source_type: the kind of picture,
    an IPTC address.
    """

    state: str
    signer: str | None = None
    ours: bool = False
    swap: dict[str, Any] | None = None
    source_type: str | None = None
    reasons: list[str] = field(default_factory=list)


def sign(source: IO[bytes], out: IO[bytes], kind: str, title: str, target: Path, swap: dict[str, Any]) -> None:
    """Copy a picture or video with a signed manifest.

    Args:
        source: the file, open for reading at any position.
        out: the copy, open for reading and writing at any position.
        kind: its suffix, such as ".png".
        title: its name.
        target: the file whose faces were swapped, the manifest's parent ingredient.
        swap: the statement.

    Raises:
        RunError: signing fails.
        UserError: c2pa is not installed.
    """
    c2pa = require("c2pa", "faces", "a signature")
    owner = signing.credentials()
    manifest = {
        "claim_generator_info": [{"name": "Ornstein", "version": _version()}],
        "title": title,
        "format": MIME[kind],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": _actions()}},
            {"label": SWAP, "data": swap},
        ],
    }
    ingredient = {"title": target.name, "relationship": "parentOf", "instance_id": "target"}
    kind_of_target = kind_of_file(target)
    mime = kind_of_target.mime if kind_of_target is not None and kind_of_target.mime in MIME.values() else None
    try:
        if mime is None:  # a kind that the library cannot look into: named, and its hash is in the statement
            manifest["ingredients"] = [ingredient | {"format": "application/octet-stream"}]
        builder = c2pa.Builder(manifest, _context(c2pa, None))
        if mime is not None:
            with target.open("rb") as file:
                builder.add_ingredient(ingredient, mime, file)
        info = c2pa.C2paSignerInfo(signing.ALGORITHM.encode(), owner.chain, owner.key, None)
        builder.sign(c2pa.Signer.from_info(info), MIME[kind], source, out)
    except c2pa.C2paError as error:
        raise RunError(f"cannot sign {title}: {' '.join(str(error).split())}") from error


def read(path: str | Path) -> Provenance:
    """The provenance of a file. Nothing is fetched from the network.

    Raises:
        UserError: the file cannot be read, is of a kind that has no manifests, or c2pa is not installed.
    """
    c2pa, path = require("c2pa", "faces", "a signature"), Path(path)
    if path.suffix.lower() in sidecar.SIDECARS:
        return _beside(path)
    mime = MIME.get(path.suffix.lower())
    if mime is None:
        raise UserError(f"{path} is of no kind that carries provenance: one of {', '.join((*MIME, *sidecar.SIDECARS))}")
    owner = signing.existing()
    try:
        with open_regular(path) as file:
            reader = c2pa.Reader(mime, file, context=_context(c2pa, owner))
            store = json.loads(reader.json())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except c2pa.C2paError.ManifestNotFound:
        return Provenance(UNSIGNED)
    except c2pa.C2paError as error:
        # A manifest so damaged that it is none: not the same as none at all.
        return Provenance(CHANGED, reasons=[" ".join(str(error).split())])
    return _validated(store, owner)


def _beside(path: Path) -> Provenance:
    with open_regular(path):
        stated = sidecar.verified(path)
    if stated is None:
        return Provenance(UNSIGNED)
    statement, signer, ours, wrong = stated
    return Provenance(CHANGED if wrong else INTACT, signer, ours, statement, SOURCE_TYPE, wrong)


def _validated(store: dict[str, Any], owner: signing.Credentials | None) -> Provenance:
    active = store["manifests"][store["active_manifest"]]
    # A certificate that nobody vouches for does not make the picture a changed one.
    failures = [
        failure
        for failure in store.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
        if failure["code"] != "signingCredential.untrusted"
    ]
    info = active.get("signature_info", {})
    serial = info.get("cert_serial_number")
    trusted = store.get("validation_state") == "Trusted"
    swap = source_type = None
    for assertion in active.get("assertions", []):
        if assertion["label"] == SWAP and isinstance(assertion["data"], dict):
            swap = assertion["data"]
        if assertion["label"].startswith("c2pa.actions"):
            types = [action.get("digitalSourceType") for action in assertion["data"].get("actions", [])]
            source_type = next((each for each in types if each), source_type)
    return Provenance(
        CHANGED if failures else INTACT,
        f"{info.get('issuer')}, {info.get('common_name')}, certificate {serial}",
        owner is not None and trusted and serial == owner.serial,
        swap,
        source_type,
        [f"{failure['code']}: {failure.get('explanation', '')}" for failure in failures],
    )


def _actions() -> list[dict[str, Any]]:
    return [
        {"action": "c2pa.opened", "parameters": {"ingredientIds": ["target"]}},
        {
            "action": "c2pa.edited",
            "digitalSourceType": SOURCE_TYPE,
            "softwareAgent": {"name": "Ornstein", "version": _version()},
            "description": "faces were swapped by a trained model",
        },
    ]


def _context(c2pa: Any, owner: signing.Credentials | None) -> Any:
    """The library's settings: nothing fetched from the network, no thumbnails, and this machine's root is trusted."""
    settings: dict[str, Any] = {
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
        "builder": {"thumbnail": {"enabled": False}},
    }
    if owner is not None:
        settings["trust"] = {"trust_anchors": owner.root}
    return c2pa.Context(settings=c2pa.Settings.from_dict(settings))


def _version() -> str:
    try:
        return metadata.version("ornstein")
    except metadata.PackageNotFoundError:  # run from its sources
        return "unknown"
