"""Autoencoders as folders: what is saved comes back, and what is no autoencoder is refused in one line."""

import json

import pytest
import torch

from ornstein.autoencoders import AUTOENCODERS, drawn, fingerprint, load, save
from ornstein.errors import UserError


def make(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1), latent_channels=3)  # type: ignore[call-arg]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.train()(torch.rand(4, 1, 8, 8), noise())
    return model.eval()


def noise():
    return drawn(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", list(AUTOENCODERS))
def test_what_is_saved_comes_back(kind: str, tmp_path):
    model, x = make(kind), torch.rand(2, 1, 8, 8)
    save(model, tmp_path / "ae", {"training": {"steps": 3}})
    config = json.loads((tmp_path / "ae" / "config.json").read_text())
    assert config["format"] == 1
    assert config["autoencoder"]["type"] == kind
    assert config["training"] == {"steps": 3}
    again = load(tmp_path / "ae")
    assert type(again) is type(model)
    assert not again.training
    assert torch.equal(again(x, noise()).reconstruction, model(x, noise()).reconstruction)
    assert torch.equal(again.log_scale, model.log_scale)


def test_the_fingerprint_is_of_weights_and_description(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save(make("kl", seed), tmp_path / name, {"training": {"name": name}})
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len(a) == 64
    file = tmp_path / "b" / "config.json"
    config = json.loads(file.read_text())
    config["autoencoder"]["attention"] = 4
    file.write_text(json.dumps(config))
    assert fingerprint(tmp_path / "b") != a


def test_what_is_no_autoencoder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nothing")
    folder = tmp_path / "ae"
    save(make("kl"), folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())

    def write(autoencoder: object) -> None:
        file.write_text(json.dumps({"format": 1} | ({} if autoencoder is None else {"autoencoder": autoencoder})))

    write(None)
    for function in (load, fingerprint):
        with pytest.raises(UserError, match="holds no autoencoder; train one with"):
            function(folder)
    write(config["autoencoder"] | {"type": "gan"})
    with pytest.raises(UserError, match="unknown autoencoder 'gan'; known: ae, vae, hvae, vq, kl"):
        load(folder)
    write(config["autoencoder"] | {"surprise": 1})
    with pytest.raises(UserError, match=r"config.json does not describe an autoencoder: .*surprise"):
        load(folder)
    write(config["autoencoder"] | {"latent_channels": 7})
    with pytest.raises(UserError, match="has shape"):
        load(folder)
    write(config["autoencoder"])
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"cannot be read|do not belong together|there is no file"):
        load(folder)
    (folder / "model.safetensors").unlink()
    for function in (load, fingerprint):
        with pytest.raises(UserError, match=r"cannot be read|do not belong together|there is no file"):
            function(folder)
