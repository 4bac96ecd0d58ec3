import math
from dataclasses import replace

import pytest
import torch

import ornstein as orn
from ornstein.faces.conditions import appearance, blended_features, blurred, scene
from ornstein.faces.identity import IdentityNet, likeness
from ornstein.faces.photos import SourceFaces
from ornstein.faces.swap.sampling import Between, FaceModel, Inside, Towards, swap_crops
from ornstein.guidance import ClassifierFree
from ornstein.nets import FaceUNet
from ornstein.wrapper import Conditioned

SPREAD = torch.tensor([[12.0, 6.0], [9.0, 6.0], [3.0, 6.0], [6.0, 6.0], [8.0, 10.0]])
PROCESS = orn.Process(orn.schedules.Cosine())


class Painter:
    """An exact denoiser of one picture for each identity: the colour that the identity says, wherever it is asked."""

    process = PROCESS

    def __call__(self, x_t, t, /, scene, identity=None, **_):
        colour = torch.zeros(len(x_t), 3) if identity is None else identity
        assert scene.shape == (len(x_t), 5, *x_t.shape[2:])
        return PROCESS.convert(x_t, t, x0=colour[:, :, None, None].expand_as(x_t))


def targets(n: int = 3):
    draw = torch.Generator().manual_seed(0)
    target = torch.rand(n, 3, 16, 16, generator=draw) * 2 - 1
    mask = torch.zeros(n, 1, 16, 16)
    mask[:, :, 4:12, 4:12] = 1
    mask[:, :, 3, 4:12] = 0.5
    return target, mask, torch.full((n, 5, 2), 8.0)


def sources(identity: torch.Tensor) -> SourceFaces:
    """Faces of these identities (B, K); of the pictures the painter takes no notice."""
    n = len(identity)
    image = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return SourceFaces(identity, image, torch.ones(n, 1, 16, 16), SPREAD.expand(n, -1, -1))


def model(painter: bool = True) -> FaceModel:
    torch.manual_seed(0)
    recogniser = IdentityNet(3, width=8, multipliers=(1, 2, 2)).eval().requires_grad_(False)
    if painter:
        return FaceModel(Painter(), recogniser)  # type: ignore[arg-type]
    net = FaceUNet(3, 16, 5, 3, width=16, multipliers=(1, 2), depths=(1, 1))
    torch.nn.init.normal_(net.head[2].weight, std=0.1)
    return FaceModel(orn.Denoiser(net, PROCESS, "v"), recogniser)


def test_a_scene_shows_the_surroundings_and_of_the_face_a_blur():
    target, mask, landmarks = targets()
    landmarks[:, :, 0] = 3
    s = scene(target, mask, landmarks)
    outside, inside = (mask == 0).expand_as(target), (mask == 1).expand_as(target)
    assert torch.equal(s[:, :3][outside], target[outside])
    torch.testing.assert_close(s[:, :3][inside], blurred(target)[inside])
    assert torch.equal(s[:, 3:4], 2 * mask - 1)
    assert s[0, 4].argmax() == 8 * 16 + 3 and float(s[0, 4].max()) == 1  # row y = 8, column x = 3
    assert float((s[0, 4, 8, 4] + 1) / 2) == pytest.approx(min(1, 5 * math.exp(-2)))  # a pixel is 2 deviations
    # nothing of the face beyond the means of its cells is left in it
    other = target.clone()
    other[:, :, 4:6, 4:6] = other[:, :, 4:6, 4:6].flip(3)  # within one cell of 2x2 pixels
    torch.testing.assert_close(scene(other, mask, landmarks), s)
    with pytest.raises(ValueError, match="mask"):
        scene(target, mask[:2], landmarks)
    with pytest.raises(ValueError, match="landmarks"):
        scene(target, mask, landmarks[0])


def test_the_swap_is_the_identitys_inside_and_the_target_outside():
    target, mask, landmarks = targets()
    identity = torch.tensor([[0.5, -0.5, 0.0], [0.1, 0.2, 0.3], [-0.9, 0.0, 0.9]])
    out = swap_crops(model(), target, mask, landmarks, sources(identity), steps=5, guidance=1)
    assert torch.equal(out[mask.expand_as(out) == 0], target[mask.expand_as(out) == 0])
    want = torch.lerp(target, identity[:, :, None, None].expand_as(target), mask)
    torch.testing.assert_close(out, want, atol=1e-4, rtol=0)


def test_guidance_drops_the_identity_alone():
    """The unconditional painter answers 0: at scale w the colour is w times the identity's."""
    target, mask, landmarks = targets()
    who = torch.tensor([[0.2, -0.1, 0.3]])
    out = swap_crops(model(), target, mask, landmarks, sources(who), steps=4, guidance=2.5)
    torch.testing.assert_close(out[:, :, 8, 8], (2.5 * who).expand(3, -1), atol=1e-4, rtol=0)


def test_strength_goes_from_the_targets_identity_to_the_sources_and_beyond():
    target, mask, landmarks = targets()
    own, who = torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.5, 0.3, -0.1])
    for strength in (0.0, 0.5, 1.0, 1.5):
        out = swap_crops(
            model(),
            target,
            mask,
            landmarks,
            sources(who[None]),
            steps=3,
            guidance=1,
            strength=strength,
            own=own.expand(3, -1),
        )
        want = own + strength * (who - own)
        torch.testing.assert_close(out[:, :, 8, 8], want.expand(3, -1), atol=1e-4, rtol=0)
    m = model()
    alone = swap_crops(m, target, mask, landmarks, sources(who[None]), steps=3, guidance=1, strength=0.0)
    torch.testing.assert_close(alone[:, :, 8, 8], m.recogniser.embed(target).clamp(-1, 1), atol=1e-4, rtol=0)


def test_at_strength_0_nothing_of_the_source_is_in_the_picture():
    m, (target, mask, landmarks) = model(painter=False), targets()
    a, b = sources(torch.randn(3, 3)), sources(torch.randn(3, 3))
    b = replace(b, image=-b.image)
    kept = [swap_crops(m, target, mask, landmarks, s, steps=3, guidance=1, strength=0.0) for s in (a, b)]
    torch.testing.assert_close(kept[0], kept[1])
    given = [swap_crops(m, target, mask, landmarks, s, steps=3, guidance=1) for s in (a, b)]
    assert float((given[0] - given[1]).abs().max()) > 1e-2


def test_a_sample_does_not_depend_on_its_batch_and_starts_where_it_is_told():
    m, (target, mask, landmarks), who = model(painter=False), targets(), sources(torch.randn(3, 3))
    settings = {"steps": 3, "guidance": 2.0, "seed": 5}
    out = swap_crops(m, target, mask, landmarks, who, **settings)
    one_by_one = swap_crops(m, target, mask, landmarks, who, batch=1, **settings)
    torch.testing.assert_close(one_by_one, out, atol=1e-4, rtol=0)
    alone = swap_crops(m, target[2:], mask[2:], landmarks[2:], who.select(slice(2, 3)), first=2, **settings)
    torch.testing.assert_close(alone, out[2:], atol=1e-4, rtol=0)
    same = [t[:1].expand(3, *t.shape[1:]) for t in (target, mask, landmarks)] + [who.select(slice(1))]
    start = torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1)
    shared = swap_crops(m, *same, start=start, **settings)
    torch.testing.assert_close(shared[1:], shared[:1].expand(2, -1, -1, -1), atol=1e-4, rtol=0)
    assert float((swap_crops(m, *same, **settings)[0] - shared[0]).abs().max()) > 1e-2


def test_a_source_is_shown_where_the_target_is():
    """A picture that is linear in x and y stays so: its value at p is the one of the source at the point moved to p."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    image = torch.stack([x / 16, y / 16, torch.ones_like(x)])[None]
    # the source is the target turned by 90 degrees about (8, 7), half as large, and moved
    moved = torch.stack([8 - 0.5 * (SPREAD[:, 1] - 7) + 0.5, 7 + 0.5 * (SPREAD[:, 0] - 8) - 0.25], 1)
    seen = appearance(image, torch.ones(1, 1, 16, 16), moved[None], SPREAD[None])
    want_x, want_y = 8 - 0.5 * (y - 7) + 0.5, 7 + 0.5 * (x - 8) - 0.25
    inner = (slice(None), slice(2, 14), slice(2, 14))
    torch.testing.assert_close(seen[0][inner], torch.stack([want_x / 16, want_y / 16, x * 0 + 1, x * 0 + 1])[inner])
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    still = appearance(image, mask, SPREAD[None], SPREAD[None])
    torch.testing.assert_close(still, torch.cat([image * mask, mask], 1))  # nothing of what is around the face
    with pytest.raises(ValueError, match="the same landmarks"):
        appearance(image, mask, SPREAD[None, :4], SPREAD[None])
    with pytest.raises(ValueError, match="its mask"):
        appearance(image, mask[..., 1:], SPREAD[None], SPREAD[None])


def test_features_are_lent_and_the_light_is_not():
    """Of pictures that are sums of a 4x4 and an 8x8 pattern only the 8x8 one is blended in, and where it is shown."""
    draw = torch.Generator().manual_seed(0)

    def pattern(cells: int) -> torch.Tensor:
        return (
            torch.rand(1, 3, cells, cells, generator=draw)
            .repeat_interleave(16 // cells, 2)
            .repeat_interleave(16 // cells, 3)
        )

    light, target, source = pattern(4), pattern(8), pattern(8)
    whole = torch.ones(1, 1, 16, 16)
    seen = torch.cat([light + source, whole], 1)
    torch.testing.assert_close(blended_features(light + target, seen, 0.0), light + target)
    alone = blended_features(light, seen, 1.0) - light
    torch.testing.assert_close(alone, blurred(source) - blurred(source, 4))
    torch.testing.assert_close(blended_features(light, seen, 0.5) - light, alone / 2)
    nothing = torch.cat([light * 0, whole * 0], 1)
    torch.testing.assert_close(blended_features(light + target, nothing, 1.0), light + target)


def test_between_two_faces_without_either_is_the_plain_model():
    target, mask, landmarks = targets()
    plain = Conditioned(Painter(), {"scene": scene(target, mask, landmarks)})
    x = torch.randn(3, 3, 16, 16)
    d = Between(plain, {"identity": torch.ones(3, 3)}, 0.25)
    torch.testing.assert_close(d(x, 0.5).x0, torch.zeros_like(x))
    mixed = d(x, 0.5, identity=torch.zeros(3, 3))
    torch.testing.assert_close(mixed.x0, torch.full_like(x, 0.75))
    a, s = PROCESS.coefficients(0.5, x)
    torch.testing.assert_close(a * mixed.x0 + s * mixed.eps, x)


def test_the_state_outside_the_mask_is_the_target_noised():
    target, mask, landmarks = targets()
    d = Inside(Conditioned(Painter(), {"scene": scene(target, mask, landmarks)}), target, mask)
    x = torch.randn(3, 3, 16, 16)
    guess = d(x, 0.7, identity=torch.ones(3, 3))
    a, s = PROCESS.coefficients(0.7, x)
    torch.testing.assert_close(a * guess.x0 + s * guess.eps, x)
    outside = (mask == 0).expand_as(x)
    torch.testing.assert_close(guess.x0[outside], target[outside])
    inside = (mask == 1).expand_as(x)
    torch.testing.assert_close(guess.x0[inside], torch.ones_like(x)[inside])


def test_guidance_by_the_recogniser_finds_the_face_more_alike():
    target, mask, landmarks = targets()
    m, who = model(), torch.tensor([[1.0, -2.0, 0.5]]).expand(3, -1)
    plain = Conditioned(Painter(), {"scene": scene(target, mask, landmarks)})
    x, black = torch.randn(3, 3, 16, 16), {"identity": torch.zeros(3, 3)}
    before = plain(x, 0.3, **black).x0
    after = Towards(plain, m.recogniser, who, mask, 0.05)(x, 0.3, **black).x0
    assert bool((likeness(m.recogniser(after), who) > likeness(m.recogniser(before), who)).all())
    assert torch.equal(after[mask.expand_as(after) == 0], before[mask.expand_as(after) == 0])
    a, _ = PROCESS.coefficients(0.3, x)
    moved = (after - before).square().sum((1, 2, 3)) / (3 * mask.square().sum((1, 2, 3)))
    torch.testing.assert_close(moved.sqrt(), (0.05 * a.square()).flatten().expand(3), rtol=0.05, atol=0)
    none = ClassifierFree(Towards(plain, m.recogniser, who, mask, 0.05), 1.0)(x, 1.0, **black).x0
    torch.testing.assert_close(none, before * 0)  # pure noise: nothing to recognise


def test_as_many_sources_as_targets():
    target, mask, landmarks = targets()
    with pytest.raises(ValueError, match="2 sources for 3 targets"):
        swap_crops(model(), target, mask, landmarks, sources(torch.zeros(2, 3)))


def test_a_model_is_loaded_with_its_recogniser(tmp_path):
    m = model(painter=False)
    m.denoiser.save(tmp_path)
    with pytest.raises(orn.errors.UserError, match="no file"):
        FaceModel.load(tmp_path)
    m.recogniser.save(tmp_path / "identity")
    again = FaceModel.load(tmp_path)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again.recogniser(images), m.recogniser(images))
