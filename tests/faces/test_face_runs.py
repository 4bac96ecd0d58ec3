import pytest
import torch

from ornstein import checkpoint
from ornstein.errors import UserError
from ornstein.faces.identity import ExactIdentity
from ornstein.faces.swap.sampling import FaceModel
from ornstein.faces.train.face_set import FaceSet
from ornstein.faces.train.runs import WORLD, people_split, pretrain_swap, train_recogniser, train_swap
from ornstein.training import TrainConfig

LANDMARKS = torch.tensor([[22.0, 13], [18, 13], [9, 13], [13, 13], [15.5, 20]])


def faces(n: int = 20, size: int = 32, embedding: int = 4) -> FaceSet:
    draw = torch.Generator().manual_seed(0)
    return FaceSet(
        source="made up",
        images=torch.randint(256, (n, 3, size, size), generator=draw, dtype=torch.uint8),
        embeddings=torch.randn(n, embedding, generator=draw),
        landmarks=LANDMARKS.expand(n, 5, 2),
        transforms=torch.zeros(n, 2, 3),
        scores=torch.ones(n),
        people=[f"p{i}" for i in range(n // 2)],
        person=torch.arange(n) // 2,
        names=[f"p{i // 2}/{i}.jpg" for i in range(n)],
    )


def test_nobody_is_trained_on_and_held_out():
    train, held = people_split(faces())
    assert not set(train.people) & set(held.people) and len(held.people) == 1
    assert people_split(faces())[1].people == held.people


def test_first_the_recogniser_then_the_swap(tmp_path):
    config, random = TrainConfig(steps=2, batch=4, precision="float32"), torch.get_rng_state()
    with pytest.raises(UserError, match="4 numbers are not dlib's"):
        train_swap(faces(), tmp_path / "run", config)
    assert [state.step for state in train_recogniser(faces(), tmp_path / "run", config, width=8)] == [1, 2]
    states = train_swap(faces(), tmp_path / "run", config, preset="xs", resume=True)
    assert [state.step for state in states] == [1, 2]
    assert torch.equal(torch.get_rng_state(), random)  # that of the caller
    model = FaceModel.load(tmp_path / "run")
    # what the swap is told is the teacher's embedding, with the mean and scale of those that were trained on
    torch.testing.assert_close(model.recogniser.mean, faces().embeddings.mean(0))
    with pytest.raises(UserError, match="already holds a run"):
        train_swap(faces(), tmp_path / "run", config, preset="xs")


def test_photographs_go_on_from_rendered_faces_with_dlibs_recogniser(tmp_path):
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    data = faces(embedding=128)
    config = TrainConfig(steps=1, batch=4, precision="float32", learning_rate=1e-9, warmup=1)
    run = tmp_path / "run"
    states = pretrain_swap(data, run, TrainConfig(steps=2, batch=4, precision="float32", warmup=1), "xs", photos=64)
    assert [state.step for state in states] == [1, 2]
    assert [state.step for state in train_swap(data, run, config, preset="xs", resume=True)] == [1]
    model = FaceModel.load(run)
    assert isinstance(model.recogniser, ExactIdentity)
    torch.testing.assert_close(model.recogniser.mean, data.embeddings.mean(0))
    before, after = checkpoint.load(run / WORLD).state_dict(), model.denoiser.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-4)
