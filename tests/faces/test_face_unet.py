import pytest
import torch

import ornstein as orn
from ornstein.nets import FaceUNet


def tiny(**settings) -> FaceUNet:
    torch.manual_seed(0)
    net = FaceUNet(3, 16, 5, 6, **{"width": 16, "multipliers": (1, 2), "depths": (1, 1), "attention": (4,)} | settings)
    for parameter in net.parameters():  # those that start at zero, too: an untrained net would answer 0 to everything
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs(n: int = 3):
    torch.manual_seed(1)
    return torch.randn(n, 3, 16, 16), torch.linspace(-3, 3, n), torch.randn(n, 5, 16, 16), torch.randn(n, 6)


def appearance(n: int = 3):
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(2))


def test_untrained_it_is_the_best_linear_guess_about_the_scene():
    """For x0 ~ N(c, q^2) given x = a x0 + s eps: E[x0 | x] = c + (a q^2 / (a^2 q^2 + s^2)) (x - a c)."""
    process = orn.Process(orn.schedules.Cosine())
    net = FaceUNet(3, 16, 5, 6, width=16, multipliers=(1, 2), depths=(1, 1), spread=0.5)
    x, _, scene, _ = inputs()
    scene[:, 3, :8], scene[:, 3, 8:] = 1, -1
    t = torch.tensor([0.1, 0.5, 0.9])
    x0 = orn.Denoiser(net, process, "v")(x, t, scene=scene).x0
    a, s = process.coefficients(t, x)
    for rows, q in ((slice(0, 8), 0.5 / 4), (slice(8, 16), 0.05 / 4)):
        c, y = scene[:, :3, rows], x[:, :, rows]
        want = c + (a * q**2 / (a**2 * q**2 + s**2)) * (y - a * c)
        torch.testing.assert_close(x0[:, :, rows], want, atol=1e-5, rtol=1e-4)
    # at t = 1, all but pure noise, the picture of the scene, and at no noise x itself
    torch.testing.assert_close(orn.Denoiser(net, process, "v")(x, 1.0, scene=scene).x0, scene[:, :3], atol=0.01, rtol=0)
    torch.testing.assert_close(orn.Denoiser(net, process, "v")(x, 0.0, scene=scene).x0, x)


def test_untrained_it_lays_half_of_the_face_that_is_shown_over_the_scene():
    net, scene = FaceUNet(3, 16, 5, 6, width=16, multipliers=(1, 2), depths=(1, 1)), torch.zeros(1, 5, 16, 16)
    scene[:, 3] = 1
    draw = torch.Generator().manual_seed(0)
    face = torch.rand(1, 3, 16, 16, generator=draw)
    shown = torch.ones(1, 1, 16, 16)
    shown[..., 8:] = 0
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v")
    guess = d(
        torch.zeros(1, 3, 16, 16), 1.0, scene=scene, identity=torch.zeros(1, 6), appearance=_shown(face, shown)
    ).x0
    torch.testing.assert_close(guess, face * shown / 2, atol=0.01, rtol=0)


def test_what_is_shown_is_moved_as_planned():
    net = tiny()
    face = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plan = torch.zeros(2, 4, 8, 8)
    plan[:, :2] = 30.0  # all of its colours and of its detail
    plan[:, 2], plan[:, 3] = 2 * 2 / 16 / 0.2, -4 * 2 / 16 / 0.2  # 2 pixels from the right, 4 from above
    out = net.carried(plan, _shown(face, torch.ones(2, 1, 16, 16)), torch.zeros(2, 3, 16, 16))
    torch.testing.assert_close(out[:, :, 4:, :14], face[:, :, :12, 2:])
    plan[:, 1] = -30.0  # its colours alone
    low = net.carried(plan, _shown(face, torch.ones(2, 1, 16, 16)), torch.zeros(2, 3, 16, 16))
    assert float(low[:, :, 6:, :12].std()) < 0.8 * float(out[:, :, 6:, :12].std())
    torch.testing.assert_close(low[:, :, 6:, :12].mean(), out[:, :, 6:, :12].mean(), atol=0.03, rtol=0)


def _shown(face: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([face * mask, mask], dim=1)


def test_a_dropped_identity_is_none_at_all_row_by_row():
    net, (x, log_snr, scene, who) = tiny(), inputs()
    with torch.no_grad():
        known, nobody = net(x, log_snr, scene, who, appearance()), net(x, log_snr, scene)
        some = net(x, log_snr, scene, who, appearance(), torch.tensor([True, False, True]))
    torch.testing.assert_close(some[[0, 2]], nobody[[0, 2]])
    torch.testing.assert_close(some[1], known[1])
    assert float((known - nobody).abs().max()) > 1e-2


@pytest.mark.parametrize("what", ["scene", "identity", "appearance", "log_snr"])
def test_it_listens_to_every_condition(what):
    net, (x, log_snr, scene, who) = tiny(), inputs()
    given = {"log_snr": log_snr, "scene": scene, "identity": who, "appearance": appearance()}
    with torch.no_grad():
        before, after = (net(x, **given), net(x, **given | {what: given[what] + 1}))
    assert float((before - after).abs().max()) > 1e-3


def test_tokens_reach_the_pixels_by_attention_alone():
    """With the adaptive norms cut off, what is left of an identity comes through the attention's tokens."""
    net, (x, log_snr, scene, who) = tiny(), inputs()
    seen = appearance()
    for name, module in net.named_modules():
        if name.endswith("modulation"):
            torch.nn.init.zeros_(module.weight)
    with torch.no_grad():
        assert float((net(x, log_snr, scene, who, seen) - net(x, log_snr, scene, -who, seen)).abs().max()) > 1e-4
        for name, module in net.named_modules():
            if name.endswith("of_tokens"):
                torch.nn.init.zeros_(module.weight)
        torch.testing.assert_close(net(x, log_snr, scene, who, seen), net(x, log_snr, scene, -who, seen))


def test_a_checkpoint_rebuilds_it(tmp_path):
    net, (x, log_snr, scene, who) = tiny(), inputs()
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v").save(tmp_path)
    again = orn.load(tmp_path)
    known = (x, log_snr, scene, who, appearance())
    torch.testing.assert_close(again.net(*known), net(*known))
    assert again.conditions == ("scene", "identity", "appearance", "dropped")


@pytest.mark.parametrize("size", [32, 64, 128])
def test_presets_fit_the_usual_sizes(size):
    net = FaceUNet.preset("xs", size=size, scene=5, identity=4)
    with torch.no_grad():
        scene, seen = (torch.zeros(1, channels, size, size) for channels in (5, 4))
        out = net(torch.zeros(1, 3, size, size), torch.zeros(1), scene, torch.zeros(1, 4), seen)
    assert out.shape == (1, 3, size, size)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scene": None}, "scene is missing"),
        ({"scene": torch.zeros(3, 4, 16, 16)}, "scene is"),
        ({"identity": torch.zeros(3, 7)}, "identity is"),
        ({"identity": None}, "identity and appearance go together"),
        ({"appearance": torch.zeros(3, 3, 16, 16)}, "appearance is"),
        (
            {"identity": None, "appearance": None, "dropped": torch.ones(3, dtype=torch.bool)},
            "dropped goes with an identity",
        ),
        ({"x": torch.zeros(3, 3, 8, 8)}, "this net takes"),
        ({"log_snr": torch.zeros(2)}, "log_snr"),
    ],
)
def test_wrong_input_is_named(wrong, message):
    x, log_snr, scene, who = inputs()
    right = {"x": x, "log_snr": log_snr, "scene": scene, "identity": who, "appearance": appearance()}
    with pytest.raises(ValueError, match=message):
        tiny()(**right | wrong)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="not divisible by 8"):
        FaceUNet(3, 20, 5, 6, multipliers=(1, 2, 2), depths=(1, 1, 1))
    with pytest.raises(ValueError, match="one per level"):
        FaceUNet(3, 16, 5, 6, multipliers=(1, 2), depths=(1,))
    for wrong, message in (({"scene": 3}, "more channels"), ({"identity": 0}, "positive"), ({"spread": 0.0}, "spread")):
        with pytest.raises(ValueError, match=message):
            FaceUNet(**{"channels": 3, "size": 16, "scene": 5, "identity": 6} | wrong)
    with pytest.raises(ValueError, match="no preset 'z'"):
        FaceUNet.preset("z", size=64, scene=5, identity=4)


def test_what_is_left_to_learn_has_unit_variance():
    """For x0 of deviation `spread` about the scene's picture, F's target has mean square 1 at every noise level."""
    process = orn.Process(orn.schedules.Cosine())
    net = FaceUNet(3, 16, 5, 6, width=16, multipliers=(1, 2), depths=(1, 1), spread=0.4)
    draw = torch.Generator().manual_seed(0)
    scene = torch.rand(16, 5, 16, 16, generator=draw)
    scene[:, 3] = 1
    x0 = scene[:, :3] + 0.4 * torch.randn(16, 3, 16, 16, generator=draw)
    z = torch.randn(16, 3, 16, 16, generator=draw)
    answer = net.head[2]
    for t in (0.02, 0.1, 0.3, 0.6, 0.95):
        times = torch.full((16,), t)
        x = process.add_noise(x0, times, z)
        a, s = process.coefficients(times, x)
        log_snr = process.schedule.log_snr(times).float()
        with torch.no_grad():
            answer.bias.zero_()
            plain = net(x, log_snr, scene)
            answer.bias.fill_(1.0)  # F = 1 everywhere: what it does to the answer is its scale
            scale = plain - net(x, log_snr, scene)
        target = (plain - (a * z - s * x0)) / scale
        assert float(target.square().mean()) == pytest.approx(1, rel=0.08)
