import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from timm_dad.method.attack import NORMS, AttackConfig, ascend, project, random_start, unit

SHAPE = (3, 6, 5)  # height and width differ: a transposed dimension shows
# Sums of rounding errors of fp32 pixels near 1 (6e-8 each).
ROUNDING = 1e-6


def length(x, norm):
    x = x.double().flatten(1)
    return x.norm(dim=1) if norm == 'l2' else x.abs().amax(dim=1)


def random_tensor(batch, seed, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, *SHAPE, generator=generator) * (high - low) + low


def radii(values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def smooth_loss(seed=0):
    """A smooth loss of pixels ``[B, 3, H, W] -> [B]`` in float64, with a curvature."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, math.prod(SHAPE), generator=generator, dtype=torch.float64) / 4
    return lambda x: (x.double().flatten(1) @ weight.t()).tanh().pow(2).sum(dim=1) + 0.1


def linear_loss(x):
    weight = torch.linspace(-1, 1, math.prod(SHAPE)).view(SHAPE)
    return (x * weight.to(x.dtype)).flatten(1).sum(dim=1)


seeds = st.integers(0, 10_000)
norms = st.sampled_from(NORMS)
budgets = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4)


@given(seed=seeds, norm=norms, eps=budgets, spread=st.sampled_from([0.01, 1.0, 100.0]))
def test_project_lands_in_the_ball_and_in_the_range(seed, norm, eps, spread):
    x_pix = random_tensor(len(eps), seed)
    x_adv = x_pix + random_tensor(len(eps), seed + 1, -spread, spread)
    projected = project(x_adv, x_pix, radii(eps), norm).clamp(0, 1)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert (length(projected - x_pix, norm) <= torch.tensor(eps) + ROUNDING).all()
    torch.testing.assert_close(project(projected, x_pix, radii(eps), norm), projected, atol=ROUNDING, rtol=0)


@given(seed=seeds, norm=norms)
def test_project_leaves_points_that_are_inside(seed, norm):
    x_pix = random_tensor(2, seed, 0.4, 0.6)
    x_adv = x_pix + 0.1 * unit(random_tensor(2, seed + 1, -1, 1), norm)
    torch.testing.assert_close(project(x_adv, x_pix, radii([0.2, 0.3]), norm), x_adv, atol=ROUNDING, rtol=0)


def test_project_is_the_nearest_point_of_the_ball():
    x_pix = torch.full((1, *SHAPE), 0.5)
    delta = torch.zeros(1, *SHAPE)
    delta[0, 0, 0, 0], delta[0, 1, 2, 3] = 0.3, -0.4  # length 0.5
    expected = x_pix + delta * 0.1 / 0.5
    torch.testing.assert_close(project(x_pix + delta, x_pix, radii([0.1]), 'l2'), expected)
    expected = x_pix + delta.clamp(-0.35, 0.35)
    torch.testing.assert_close(project(x_pix + delta, x_pix, radii([0.35]), 'linf'), expected)


@given(seed=seeds, scale=st.floats(-30, 30))
def test_unit_l2_has_length_one_at_any_scale_and_keeps_the_direction(seed, scale):
    direction = random_tensor(3, seed, -1, 1)
    result = unit(direction * 10**scale, 'l2')
    assert result.dtype == torch.float32
    torch.testing.assert_close(length(result, 'l2'), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)
    cosine = (result.double() * direction.double()).flatten(1).sum(dim=1) / length(direction, 'l2')
    torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_unit_linf_is_the_sign():
    direction = torch.tensor([3.0, -1e-30, 0.0, 1e30]).view(1, 1, 2, 2)
    assert unit(direction, 'linf').flatten().tolist() == [1, -1, 0, 1]


@pytest.mark.parametrize('norm', NORMS)
def test_unit_of_zero_and_of_nan_is_zero(norm):
    direction = torch.zeros(2, *SHAPE)
    direction[1] = torch.nan
    assert torch.equal(unit(direction, norm), torch.zeros(2, *SHAPE))


@pytest.mark.parametrize('norm', NORMS)
def test_unit_stays_finite_where_only_some_entries_are_not(norm):
    direction = random_tensor(1, 0, -1, 1)
    direction[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    result = unit(direction, norm)
    assert result.isfinite().all()
    assert length(result, norm) <= 1 + ROUNDING


@given(seed=seeds, norm=norms, eps=budgets, steps=st.integers(0, 3), start=st.sampled_from([0.0, 0.8, 1.0]))
def test_ascend_stays_in_the_ball_and_in_the_range(seed, norm, eps, steps, start):
    x_pix = random_tensor(len(eps), seed)
    config = AttackConfig(eps=0.5, step_size=0.4, num_steps=steps, norm=norm, random_start=start)
    x_adv = ascend(smooth_loss(seed), x_pix, config, eps=torch.tensor(eps))
    assert x_adv.shape == x_pix.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (length(x_adv - x_pix, norm) <= torch.tensor(eps) + ROUNDING).all()


@given(seed=seeds, norm=norms)
def test_a_budget_of_zero_leaves_the_image_unchanged(seed, norm):
    x_pix = random_tensor(3, seed)
    config = AttackConfig(eps=0.5, step_size=0.3, num_steps=2, norm=norm, random_start=1.0)
    x_adv = ascend(smooth_loss(seed), x_pix, config, eps=torch.tensor([0.0, 0.5, 0.0]))
    assert torch.equal(x_adv[0], x_pix[0])
    assert torch.equal(x_adv[2], x_pix[2])
    assert not torch.equal(x_adv[1], x_pix[1])
    none = AttackConfig(eps=0.0, step_size=0.3, num_steps=2, norm=norm, random_start=1.0)
    assert torch.equal(ascend(smooth_loss(seed), x_pix, none), x_pix)


@pytest.mark.parametrize('norm', NORMS)
def test_a_budget_per_image_equals_a_config_with_that_budget(norm):
    x_pix = random_tensor(2, 0)
    config = AttackConfig(eps=0.1, step_size=0.05, num_steps=2, norm=norm, random_start=0.0)
    x_adv = ascend(smooth_loss(), x_pix, config, eps=torch.tensor([0.1, 0.4]))
    torch.testing.assert_close(x_adv[:1], ascend(smooth_loss(), x_pix[:1], config))
    # The step scales along with the radius.
    wide = AttackConfig(eps=0.4, step_size=0.2, num_steps=2, norm=norm, random_start=0.0)
    torch.testing.assert_close(x_adv[1:], ascend(smooth_loss(), x_pix[1:], wide))


@pytest.mark.parametrize('norm', NORMS)
def test_channels_last_is_kept_and_changes_no_value(norm):
    x_pix = random_tensor(2, 0)
    config = AttackConfig(eps=0.5, step_size=0.2, num_steps=2, norm=norm, random_start=1.0)
    conv = nn.Conv2d(3, 4, 3)

    def attack(x):
        formats = []

        def loss(x_adv):
            formats.append(x_adv.is_contiguous(memory_format=torch.channels_last))
            return conv(x_adv).tanh().flatten(1).sum(dim=1)

        return ascend(loss, x, config, generator=torch.Generator().manual_seed(0)), formats

    expected, _ = attack(x_pix)
    x_adv, formats = attack(x_pix.contiguous(memory_format=torch.channels_last))
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert formats == [True, True]
    assert expected.is_contiguous()
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)


def test_strided_views_are_taken_as_they_are():
    x_pix = random_tensor(4, 0)
    config = AttackConfig(eps=0.5, step_size=0.2, random_start=0.0)
    torch.testing.assert_close(ascend(smooth_loss(), x_pix[::2], config), ascend(smooth_loss(), x_pix, config)[::2])


def test_the_input_is_left_alone():
    x_pix = random_tensor(2, 0).requires_grad_(True)
    before = x_pix.detach().clone()
    with torch.no_grad():
        ascend(smooth_loss(), x_pix, AttackConfig(eps=0.5, step_size=0.2))
    assert torch.equal(x_pix, before)
    assert x_pix.grad is None


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('steps', [0, 1, 3])
def test_num_steps_is_the_number_of_gradients_and_of_steps(norm, steps):
    calls = 0

    def loss(x):
        nonlocal calls
        calls += 1
        return linear_loss(x)

    x_pix = torch.full((2, *SHAPE), 0.5)
    config = AttackConfig(eps=0.4, step_size=0.1, num_steps=steps, norm=norm, random_start=0.0)
    x_adv = ascend(loss, x_pix, config)
    assert calls == steps
    expected = torch.full((2,), 0.1 * steps, dtype=torch.float64)
    torch.testing.assert_close(length(x_adv - x_pix, norm), expected, atol=1e-5, rtol=0)


def test_steps_stop_at_the_sphere():
    x_pix = torch.full((1, *SHAPE), 0.5)
    config = AttackConfig(eps=0.25, step_size=0.1, num_steps=5, random_start=0.0)
    torch.testing.assert_close(length(ascend(linear_loss, x_pix, config) - x_pix, 'l2').item(), 0.25)


def test_random_start_l2_is_on_the_sphere_in_all_directions():
    x_pix = torch.full((400, *SHAPE), 0.5)
    config = AttackConfig(eps=0.4, random_start=1.0)
    delta = random_start(x_pix, radii([0.4] * 400), config, None) - x_pix
    torch.testing.assert_close(length(delta, 'l2'), torch.full((400,), 0.4, dtype=torch.float64), atol=1e-5, rtol=0)
    # Directions of n pixels have mean 0 and variance eps^2 / n; 400 x 90 of them, so 4 standard errors are small.
    variance = 0.4**2 / math.prod(SHAPE)
    assert abs(delta.mean()) < 4 * math.sqrt(variance / delta.numel())
    torch.testing.assert_close(delta.var().item(), variance, rtol=0.05, atol=0)


def test_random_start_linf_is_uniform_in_the_cube():
    x_pix = torch.full((400, *SHAPE), 0.5)
    config = AttackConfig(eps=0.4, norm='linf', random_start=1.0)
    delta = random_start(x_pix, radii([0.4] * 400), config, None) - x_pix
    assert delta.abs().max() <= 0.4 + ROUNDING
    histogram = torch.histc(delta, bins=4, min=-0.4, max=0.4) / delta.numel()
    torch.testing.assert_close(histogram, torch.full((4,), 0.25), atol=0.015, rtol=0)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('probability', [0.0, 0.3, 1.0])
def test_random_start_moves_images_with_its_probability(norm, probability):
    x_pix = torch.full((2000, 3, 2, 2), 0.5)
    config = AttackConfig(eps=0.1, norm=norm, random_start=probability)
    moved = (random_start(x_pix, radii([0.1] * 2000), config, None) != x_pix).flatten(1).any(dim=1)
    # 4 standard deviations of a mean of 2000.
    assert abs(moved.float().mean().item() - probability) <= 4 * math.sqrt(probability * (1 - probability) / 2000)


def test_random_start_is_clipped_to_the_range():
    x_pix = torch.ones(4, *SHAPE)
    x_start = random_start(x_pix, radii([1.0] * 4), AttackConfig(eps=1.0, random_start=1.0), None)
    assert x_start.max() <= 1
    assert x_start.min() < 1


@given(seed=seeds, norm=norms, steps=st.integers(1, 4))
def test_the_loss_rises(seed, norm, steps):
    x_pix = random_tensor(3, seed, 0.3, 0.7)
    config = AttackConfig(eps=0.1, step_size=0.002, num_steps=steps, norm=norm, random_start=0.0)
    loss = smooth_loss(seed)
    assert (loss(ascend(loss, x_pix, config)) > loss(x_pix)).all()


def test_a_negative_loss_rises_too():
    # A margin, say: the ascent must not depend on the sign of the value.
    x_pix = random_tensor(3, 0, 0.3, 0.7)
    config = AttackConfig(eps=0.1, step_size=0.01, random_start=0.0)
    loss = smooth_loss()
    torch.testing.assert_close(ascend(lambda x: loss(x) - 10, x_pix, config), ascend(loss, x_pix, config))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_loss_in_half_precision_is_ascended(dtype):
    x_pix = random_tensor(2, 0, 0.3, 0.7)
    config = AttackConfig(eps=0.1, step_size=0.05, random_start=0.0)
    x_adv = ascend(lambda x: linear_loss(x.to(dtype)), x_pix, config)
    torch.testing.assert_close(x_adv, ascend(linear_loss, x_pix, config), atol=1e-3, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])  # fp16 overflows here, as ascend says
def test_a_loss_of_value_zero_with_a_gradient_rises_too(dtype):
    # A margin loss on the decision boundary is exactly zero, and behind a half-precision network such ties are common.
    x_pix = torch.full((2, *SHAPE), 0.5)
    centre = linear_loss(x_pix.to(dtype)).detach()
    config = AttackConfig(eps=0.1, step_size=0.05, random_start=0.0)
    x_adv = ascend(lambda x: (linear_loss(x.to(dtype)) - centre).float(), x_pix, config)
    torch.testing.assert_close(x_adv, ascend(linear_loss, x_pix, config), atol=1e-3, rtol=0)


@pytest.mark.parametrize('norm', NORMS)
def test_the_direction_is_that_of_finite_differences(norm):
    x_pix = random_tensor(2, 3, 0.3, 0.7)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 3, 5)).double()
    target = torch.tensor([1, 4])

    def loss(x):
        return nn.functional.cross_entropy(network(x.double()), target, reduction='none')

    with torch.no_grad():
        h = 1e-6
        gradient = torch.empty(2, math.prod(SHAPE), dtype=torch.float64)
        for i in range(gradient.shape[1]):
            bump = torch.zeros(1, gradient.shape[1], dtype=torch.float64)
            bump[0, i] = h
            bump = bump.view(1, *SHAPE)
            gradient[:, i] = (loss(x_pix.double() + bump) - loss(x_pix.double() - bump)) / (2 * h)
    assert gradient.abs().min() > 1e-7  # no sign hangs on a rounding error
    config = AttackConfig(eps=0.25, step_size=0.25, norm=norm, random_start=0.0)
    direction = ((ascend(loss, x_pix, config) - x_pix) / 0.25).flatten(1).double()
    expected = gradient.sign() if norm == 'linf' else gradient / gradient.norm(dim=1, keepdim=True)
    torch.testing.assert_close(direction, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('scale', [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter(norm, scale):
    x_pix = random_tensor(3, 0, 0.3, 0.7)
    config = AttackConfig(eps=0.1, step_size=0.1, num_steps=2, norm=norm, random_start=0.0)
    loss = smooth_loss()
    scaled = ascend(lambda x: loss(x) * scale, x_pix, config)
    torch.testing.assert_close(scaled, ascend(loss, x_pix, config), atol=1e-6, rtol=0)


@pytest.mark.parametrize('norm', NORMS)
def test_images_do_not_influence_one_another(norm):
    x_pix = random_tensor(3, 0)
    config = AttackConfig(eps=0.2, step_size=0.1, num_steps=2, norm=norm, random_start=0.0)
    alone = torch.cat([ascend(smooth_loss(), image[None], config) for image in x_pix])
    torch.testing.assert_close(ascend(smooth_loss(), x_pix, config), alone)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('factor', [0.0, torch.nan, torch.inf])
def test_a_zero_or_not_finite_gradient_leaves_its_image_and_only_it(norm, factor):
    x_pix = random_tensor(3, 0)
    config = AttackConfig(eps=0.2, step_size=0.1, num_steps=2, norm=norm, random_start=0.0)
    factors = torch.tensor([1.0, factor, 1.0], dtype=torch.float64)
    x_adv = ascend(lambda x: smooth_loss()(x) * factors, x_pix, config)
    assert torch.equal(x_adv[1], x_pix[1])
    healthy = ascend(smooth_loss(), x_pix, config)
    torch.testing.assert_close(x_adv[[0, 2]], healthy[[0, 2]])
    assert not torch.equal(x_adv[0], x_pix[0])


@pytest.mark.parametrize('norm', NORMS)
def test_equal_seeds_are_bit_equal(norm):
    x_pix = random_tensor(4, 0)
    config = AttackConfig(eps=0.2, step_size=0.1, num_steps=2, norm=norm, random_start=0.5)

    def attack(seed):
        torch.manual_seed(seed)
        return ascend(smooth_loss(), x_pix, config)

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))


@pytest.mark.parametrize('norm', NORMS)
def test_a_generator_is_the_only_source_of_randomness(norm):
    x_pix = random_tensor(4, 0)
    config = AttackConfig(eps=0.2, step_size=0.1, norm=norm, random_start=0.5)

    def attack(seed):
        return ascend(smooth_loss(), x_pix, config, generator=torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    first = attack(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(attack(1), first)
    assert not torch.equal(attack(2), first)


def test_half_precision_images_come_back_in_fp32():
    x_pix = random_tensor(2, 0)
    x_adv = ascend(smooth_loss(), x_pix.half(), AttackConfig(eps=0.1, step_size=0.05))
    assert x_adv.dtype == torch.float32
    assert (length(x_adv - x_pix.half().float(), 'l2') <= 0.1 + ROUNDING).all()


def test_the_defaults_are_the_released_settings():
    config = AttackConfig()
    assert (config.eps, config.step_size, config.num_steps) == (0.1, 0.01, 1)
    assert (config.norm, config.random_start) == ('l2', 0.8)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('name', ['eps', 'step_size'])
def test_eps_in_255_units_is_refused_with_a_hint(norm, name):
    with pytest.raises(ValueError, match=rf'{name} is in \[0, 1\] pixel units.*got 8.*8/255 = 0\.031'):
        AttackConfig(**{'norm': norm, name: 8})


@pytest.mark.parametrize(
    ('setting', 'match'),
    [
        ({'norm': 'l1'}, "norm must be one of .*'l2'.*got 'l1'"),
        ({'eps': -0.1}, r'eps is in \[0, 1\] pixel units.*got -0\.1'),
        ({'eps': math.nan}, 'eps is in .*got nan'),
        ({'step_size': -1.0}, r'step_size is in .*got -1\.0'),
        ({'step_size': math.nan}, 'step_size is in .*got nan'),
        ({'norm': 'linf', 'eps': 1.5}, r'eps is in .*linf.*got 1\.5'),
        ({'num_steps': -1}, 'num_steps must be 0 or more, got -1'),
        ({'random_start': 1.1}, r'random_start is a probability.*got 1\.1'),
        ({'random_start': -0.1}, r'random_start is a probability.*got -0\.1'),
        ({'random_start': math.nan}, 'random_start is a probability.*got nan'),
    ],
)
def test_config_out_of_range_is_refused(setting, match):
    with pytest.raises(ValueError, match=match):
        AttackConfig(**setting)


@pytest.mark.parametrize('shape', [SHAPE, (2, 3, 4, 5, 6)])
def test_images_that_are_not_4d_are_refused(shape):
    with pytest.raises(ValueError, match=r'images must be \[B, 3, H, W\], got shape'):
        ascend(linear_loss, torch.rand(shape), AttackConfig())


@pytest.mark.parametrize('reduce', [torch.mean, lambda loss: loss[:, None], lambda loss: loss[:1]])
def test_a_loss_that_is_not_one_per_image_is_refused(reduce):
    with pytest.raises(ValueError, match=r'loss_fn must return one loss per image \[2\], got shape'):
        ascend(lambda x: reduce(linear_loss(x)), random_tensor(2, 0), AttackConfig())


@pytest.mark.parametrize('eps', [torch.tensor(0.1), torch.full((3,), 0.1), torch.full((2, 1, 1, 1), 0.1)])
def test_budgets_that_are_not_one_per_image_are_refused(eps):
    with pytest.raises(ValueError, match=r'eps must hold one value per image \[2\], got shape'):
        ascend(linear_loss, random_tensor(2, 0), AttackConfig(), eps=eps)


@pytest.mark.parametrize('bad', [-0.1, 8.0, float('nan')])
def test_a_radius_of_an_image_out_of_range_is_refused(x_pix, bad):
    eps = torch.tensor([0.1, bad, 0.1, 0.1])
    with pytest.raises(ValueError, match=r'eps is in \[0, 1\] pixel units, from 0 to 5, got'):
        ascend(lambda x: x.sum(dim=(1, 2, 3)), x_pix, AttackConfig(), eps=eps)


def test_radii_need_a_step_to_scale(x_pix):
    with pytest.raises(ValueError, match=r'config\.eps must not be 0'):
        ascend(lambda x: x.sum(dim=(1, 2, 3)), x_pix, AttackConfig(eps=0.0), eps=torch.full((4,), 0.1))
