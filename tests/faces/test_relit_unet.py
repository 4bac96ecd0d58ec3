import pytest
import torch

import ornstein as orn
from ornstein import checkpoint
from ornstein.nets import RelitUNet

SIZE, POINTS = 16, 6
SHAPE = {"patch": 2, "width": 16, "multipliers": (1, 2), "depths": (1, 1), "attention": (4,)}


def tiny(awake: bool = True) -> RelitUNet:
    torch.manual_seed(0)
    net = RelitUNet(SIZE, 4, POINTS, **SHAPE)
    for parameter in net.parameters() if awake else ():  # those that start at zero, too
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs(n: int = 2) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    scene = torch.rand(n, 5, SIZE, SIZE, generator=draw) * 2 - 1
    scene[:, 3] = 1
    where = torch.rand(n, POINTS, 2, generator=draw) * SIZE
    known = {
        "scene": scene,
        "identity": torch.randn(n, 4, generator=draw),
        "appearance": torch.rand(n, 4, SIZE, SIZE, generator=draw),
        "points": torch.stack([where, where], 1),
    }
    return torch.randn(n, 3, SIZE, SIZE, generator=draw), torch.linspace(-3, 3, n), known


def test_untrained_it_lays_the_face_where_its_landmarks_go():
    """The target's landmarks lie 4 pixels to the right of the source's: so does the face, in its own light."""
    net = tiny(awake=False)
    x, _, known = inputs(1)
    known["appearance"] = torch.zeros(1, 4, SIZE, SIZE)
    known["appearance"][:, :3, 4:12, 2:8], known["appearance"][:, 3, 4:12, 2:8] = 0.5, 1
    known["points"][:, 1, :, 0] += 4
    known["scene"][:, :3] = 0
    x0 = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v")(x, 1.0, **known).x0
    share = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(x0[:, :, 5:11, 7:11], (0.5 * share).expand(1, 3, 6, 4), atol=0.03, rtol=0)
    assert float(x0[:, :, :, :4].abs().max()) < 0.05


def test_a_gain_is_another_light_on_the_same_skin():
    """In pixels w = 2 sqrt(light) - 1, twice the light is sqrt 2 times w + 1."""
    net, plan, maps = tiny(), torch.zeros(1, 8, 8, 8), torch.full((1, 2, SIZE, SIZE), 30.0)
    plan[:, 2:5] = 0.5 * torch.log(torch.tensor(2.0))
    light = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / 2
    face = torch.cat([2 * light.sqrt() - 1, torch.ones(1, 1, SIZE, SIZE)], 1)
    black, blur = torch.zeros(1, 3, SIZE, SIZE), torch.ones(1, 3, SIZE, SIZE)
    out = net.carried(plan, maps, face, black, blur)
    torch.testing.assert_close(out, 2 * (2 * light).sqrt() - 1, atol=1e-5, rtol=1e-5)


def test_each_pixel_is_of_the_face_the_target_or_its_blur():
    """The maps are told for single pixels: a face ends at a line."""
    net, plan, maps = tiny(), torch.zeros(1, 8, 8, 8), torch.full((1, 2, SIZE, SIZE), -30.0)
    maps[:, 0, :, :5], maps[:, 1, :, 5:9] = 30.0, 30.0
    face = torch.tensor([0.25, 0.25, 0.25, 1.0]).view(1, 4, 1, 1).expand(1, 4, SIZE, SIZE)
    target, blur = torch.full((1, 3, SIZE, SIZE), 0.5), torch.full((1, 3, SIZE, SIZE), -0.5)
    columns = net.carried(plan, maps, face, target, blur)[0, 0, 0]
    expected = torch.tensor([0.25] * 5 + [0.5] * 4 + [-0.5] * (SIZE - 9))
    torch.testing.assert_close(columns, expected, atol=1e-5, rtol=1e-5)


def test_no_source_and_a_dropped_one_are_the_same():
    net = tiny()
    x, log_snr, known = inputs()
    with torch.no_grad():
        nobody = net(x, log_snr, known["scene"])
        some = net(x, log_snr, **known, dropped=torch.tensor([True, False]))
        whole = net(x, log_snr, **known)
    torch.testing.assert_close(some[0], nobody[0])
    torch.testing.assert_close(some[1], whole[1])
    assert not torch.allclose(some[1], nobody[1], atol=1e-3)


@pytest.mark.parametrize("name", ["identity", "appearance", "points", "scene"])
def test_it_looks_at_all_that_it_is_given(name):
    net = tiny()
    x, log_snr, known = inputs()
    with torch.no_grad():
        before = net(x, log_snr, **known)
        known[name] = known[name] + (3.0 if name == "points" else 0.3) * torch.rand_like(known[name])
        assert not torch.allclose(net(x, log_snr, **known), before, atol=1e-4)


def test_a_row_depends_on_itself_alone_and_half_precision_stays_near():
    net = tiny()
    x, log_snr, known = inputs(3)
    with torch.no_grad():
        whole = net(x, log_snr, **known)
        one = net(x[1:2], log_snr[1:2], **{name: each[1:2] for name, each in known.items()})
        torch.testing.assert_close(one, whole[1:2], atol=1e-5, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x, log_snr, **known)
    assert half.dtype == torch.float32 and float((half - whole).abs().mean()) < 0.02 * float(whole.abs().mean())


def test_it_is_saved_and_loaded_with_its_placement(tmp_path):
    net = tiny()
    net.placement.fit(torch.randn(40, POINTS, 2, generator=torch.Generator().manual_seed(5)))
    denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=orn.Data((3, SIZE, SIZE)))
    checkpoint.save(denoiser, tmp_path)
    x, _, known = inputs()
    again = orn.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(x, 0.7, **known).x0, denoiser.eval()(x, 0.7, **known).x0)


def test_wrong_shapes_are_named():
    net = tiny()
    x, log_snr, known = inputs()
    with pytest.raises(ValueError, match="scene is missing"):
        net(x, log_snr)
    with pytest.raises(ValueError, match="go together"):
        net(x, log_snr, known["scene"], known["identity"])
    with pytest.raises(ValueError, match="points are"):
        net(x, log_snr, **known | {"points": known["points"][:, :1]})
    with pytest.raises(ValueError, match="3 landmarks"):
        net(x, log_snr, **known | {"points": known["points"][:, :, :3]})
    with pytest.raises(ValueError, match="not divisible"):
        RelitUNet(18, 4, POINTS, **SHAPE)
    with pytest.raises(ValueError, match="no preset"):
        RelitUNet.preset("huge", size=64, identity=4, points=POINTS)


def test_in_a_mirror_the_face_goes_to_the_landmarks_of_the_other_side():
    order, size = (1, 0, 2, 3, 4, 5), 32
    net = RelitUNet(size, 4, POINTS, mirror=order, **SHAPE)
    source = torch.tensor([[[8.0, 10], [22, 9], [15, 15], [15, 24], [14, 4], [16, 28]]])
    target = 0.9 * source + 3
    spot = torch.zeros(1, 4, size, size)
    spot[:, :, 10, 8] = 1  # at the first landmark
    _, moved, _ = net.placed(torch.stack([source, target], 1), spot)
    assert moved.shape == (1, 8, size, size)
    for channels, k in ((moved[0, 3], 0), (moved[0, 7], 1)):
        y, x = divmod(int(channels.argmax()), size)
        assert (torch.tensor([x, y]) - target[0, k]).norm() < 2
    # the third map chooses: the mirror's half of the face where it says so
    plan, maps = torch.zeros(1, 8, 8, 8), torch.full((1, 3, size, size), 30.0)
    maps[:, 2, :, : size // 2] = -40
    faces = torch.cat([torch.full((1, 3, size, size), each) for each in (0.5, -0.5)])
    both = torch.cat([faces, torch.ones(2, 1, size, size)], 1).flatten(0, 1)[None]
    black = torch.zeros(1, 3, size, size)
    out = net.carried(plan, maps, both, black, black)[0, 0, 5]
    torch.testing.assert_close(out[[4, -5]], torch.tensor([-0.5, 0.5]))
    with pytest.raises(ValueError, match="order of the 6 landmarks"):
        RelitUNet(size, 4, POINTS, mirror=(0, 0, 1, 2, 3, 4), **SHAPE)
    assert RelitUNet(**net.config).mirror == list(order)
