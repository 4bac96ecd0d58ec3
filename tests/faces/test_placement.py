import pytest
import torch

from ornstein.faces.nets.placement import Placement, spots, still, thin_plate


def points(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return 1.6 * torch.rand(n, k, 2, generator=torch.Generator().manual_seed(seed)) - 0.8


def test_untrained_the_answer_lies_where_the_target_does():
    net = Placement(7)
    source, target = points(3, 7), points(3, 7, 1)
    net.fit(points(50, 7, 2))
    torch.testing.assert_close(net(source, target), target)


def test_it_learns_that_shape_is_of_the_one_and_turn_of_the_other():
    """Shape and turn add up here; the target's shape is not in the answer, and has to be told from its turn."""
    draw = torch.Generator().manual_seed(0)
    shapes, turns = torch.randn(2, 3, 6, 2, generator=draw) * 0.2
    net = Placement(6, 32)
    best = torch.optim.Adam(net.parameters(), 5e-3)

    def batch() -> tuple[torch.Tensor, ...]:
        who, other, here, there = torch.randn(4, 64, 3, generator=draw)
        make = lambda a, b: torch.einsum("bi,ikd->bkd", a, shapes) + torch.einsum("bi,ikd->bkd", b, turns)  # noqa: E731
        return make(who, here), make(other, there), make(who, there)

    net.fit(batch()[0])
    for _ in range(300):
        source, target, truth = batch()
        (net(source, target) - truth).square().mean().backward()
        best.step()
        best.zero_grad()
    source, target, truth = batch()
    with torch.no_grad():
        answer = net(source, target)
    wrong, untaught = ((each - truth).square().mean() for each in (answer, target))
    assert float(wrong) < 0.02 * float(untaught)


def test_five_landmarks_are_completed_by_what_they_tell_of_the_others():
    few = points(200, 5)
    map_ = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    rest = (few.flatten(1) @ map_ + 0.3).unflatten(1, (4, 2))
    every = torch.cat([few, rest], 1)
    net = Placement(9)
    net.fit(every)
    torch.testing.assert_close(net.completed(few), every, atol=1e-3, rtol=1e-3)
    assert net.completed(every) is every
    with pytest.raises(ValueError, match="7 landmarks, but this net takes 9"):
        net.completed(every[:, :7])


def test_a_plate_that_is_only_moved_stretched_and_sheared_is_flat():
    onto = points(2, 8)
    map_, by = torch.tensor([[0.9, 0.1], [-0.2, 1.1]]), torch.tensor([0.1, -0.05])
    grid = thin_plate(onto @ map_ + by, onto, 32)
    inside = (slice(None), slice(5, -5), slice(5, -5))  # bicubic between cells, whose border it repeats
    torch.testing.assert_close(grid[inside], (still(32) @ map_ + by).expand(2, -1, -1, -1)[inside], atol=2e-3, rtol=0)


def test_a_plate_takes_points_near_points():
    onto = points(1, 6)
    source = onto + 0.05 * torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(3))
    grid = thin_plate(source, onto, 64)
    found = torch.nn.functional.grid_sample(grid.permute(0, 3, 1, 2), onto[:, None], align_corners=False)[:, :, 0].mT
    assert float((found - source).abs().max()) < 0.5 * float((onto - source).abs().max())


def test_points_on_a_line_or_in_one_place_have_an_answer():
    line = torch.linspace(-0.5, 0.5, 5)[None, :, None].expand(1, 5, 2)
    for where in (line, torch.zeros(1, 5, 2)):
        assert bool(thin_plate(where, where, 16).isfinite().all())


def test_spots_stand_where_the_landmarks_are():
    seen = spots(torch.tensor([[[3.0, 10.0]]]), 16)
    assert divmod(int(seen.flatten().argmax()), 16) == (10, 3) and float(seen.max()) == pytest.approx(1)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="needs points"):
        Placement(0)


def test_features_are_completed_by_the_rest_of_the_surface():
    from ornstein.faces.nets.placement import FEATURES

    few = points(400, FEATURES)
    map_ = torch.randn(2 * FEATURES, 8, generator=torch.Generator().manual_seed(1)) / 5
    every = torch.cat([few, (few.flatten(1) @ map_ + 0.3).unflatten(1, (4, 2))], 1)
    net = Placement(FEATURES + 4)
    net.fit(every)
    torch.testing.assert_close(net.completed(few), every, atol=1e-3, rtol=1e-3)
    assert torch.equal(Placement(5).completed(few), few[:, :5])
    assert "features" not in Placement(FEATURES).state_dict()
