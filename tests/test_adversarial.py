import logging
import sys

import foolbox
import pytest
import torch
from torch import nn

from timm_dad.evaluation.attacks import ATTACKS, EvalAttackConfig, check_classes, run_attack
from timm_dad.method.attack import NORMS
from timm_dad.teachers.teacher import Teacher

# Sums of rounding errors of fp32 pixels near 1 (6e-8 each).
ROUNDING = 1e-6
EPS = {'linf': 1 / 255, 'l2': 0.1}
LARGE_EPS = {'linf': 0.5, 'l2': 5.0}


@pytest.fixture
def images():
    coarse = nn.functional.interpolate(torch.rand(24, 3, 3, 3), (16, 16), mode='bilinear')
    return (0.7 * coarse + 0.3 * torch.rand(24, 3, 16, 16)).clamp(0, 1)


@pytest.fixture
def labels(teacher, images):
    """What the teacher says of every image."""
    return predicted(teacher, images)


def predicted(model, x_pix):
    with torch.no_grad():
        return model(x_pix).argmax(dim=1)


def length(x, norm):
    x = x.flatten(1)
    return x.norm(dim=1) if norm == 'l2' else x.abs().amax(dim=1)


def linear_teacher(num_classes):
    """A linear classifier on 8 x 8 pixels: AutoAttack's thousands of steps take seconds."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
    return Teacher(model, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(8, 8), num_classes=num_classes)


@pytest.mark.parametrize('norm', NORMS)
def test_fgsm_is_that_of_foolbox(teacher, images, labels, norm):
    attack = {'linf': foolbox.attacks.LinfFastGradientAttack, 'l2': foolbox.attacks.L2FastGradientAttack}[norm]()
    model = foolbox.PyTorchModel(teacher.eval(), bounds=(0, 1))
    _, expected, fooled = attack(model, images, labels, epsilons=EPS[norm])
    assert 0 < fooled.sum() < len(images)
    x_adv = run_attack('fgsm', teacher, images, labels, EvalAttackConfig(eps=EPS[norm], norm=norm))
    assert torch.equal(predicted(teacher, x_adv) != labels, fooled)
    torch.testing.assert_close(x_adv, torch.where(fooled.view(-1, 1, 1, 1), expected, images), atol=1e-6, rtol=0)


@pytest.mark.parametrize('norm', NORMS)
def test_pgd_finds_what_that_of_foolbox_finds(teacher, images, labels, norm):
    attack = {'linf': foolbox.attacks.LinfPGD, 'l2': foolbox.attacks.L2PGD}[norm](rel_stepsize=0.25, steps=20)
    model = foolbox.PyTorchModel(teacher.eval(), bounds=(0, 1))
    _, _, fooled = attack(model, images, labels, epsilons=EPS[norm])
    assert 0 < fooled.sum() < len(images)
    x_adv = run_attack('pgd', teacher, images, labels, EvalAttackConfig(eps=EPS[norm], norm=norm))
    assert (predicted(teacher, x_adv) != labels).sum() >= fooled.sum()


def test_pgd_takes_its_steps_from_a_random_point(teacher, images, labels):
    seen = []

    def model(x_adv):
        seen.append(x_adv.detach().clone())
        return teacher(x_adv)

    eps = 8 / 255
    run_attack('pgd', model, images, labels, EvalAttackConfig(eps=eps))
    clean, start, second, *rest = seen
    assert len(rest) == 18 + 1  # 20 gradients, and the question whether it worked
    assert torch.equal(clean, images)
    inside = (images > eps) & (images < 1 - eps)
    delta = (start - images)[inside]
    assert delta.abs().max() <= eps + ROUNDING
    histogram = torch.histc(delta, bins=4, min=-eps, max=eps) / delta.numel()
    torch.testing.assert_close(histogram, torch.full((4,), 0.25), atol=0.02, rtol=0)  # uniform
    moved = (second - start).abs()
    assert moved.max() <= eps / 4 + ROUNDING
    assert ((moved - eps / 4).abs() < ROUNDING).float().mean() > 0.6  # the others are projected or clipped


@pytest.mark.parametrize(
    ('setting', 'steps', 'length'), [({'num_steps': 3}, 3, 0.25), ({'step_size': 0.01}, 20, 0.01), ({}, 20, 0.25)]
)
def test_pgd_steps_are_settings(setting, steps, length):
    ascent = EvalAttackConfig(eps=1.0, **setting).ascent('pgd')
    assert (ascent.num_steps, ascent.step_size, ascent.random_start) == (steps, length, 1.0)


def test_the_default_threat_model_is_that_of_robustbench_for_imagenet():
    assert (EvalAttackConfig().eps, EvalAttackConfig().norm, EvalAttackConfig().num_steps) == (4 / 255, 'linf', 20)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('name', ['fgsm', 'pgd'])
def test_images_stay_in_the_ball_and_in_the_range_and_wrong_ones_as_they_are(teacher, images, labels, name, norm):
    target = labels.clone()
    target[::3] = (target[::3] + 1) % 5  # the teacher gets a third wrong
    x_adv = run_attack(name, teacher, images, target, EvalAttackConfig(eps=EPS[norm], norm=norm))
    assert x_adv.shape == images.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (length(x_adv - images, norm) <= EPS[norm] + ROUNDING).all()
    changed = (x_adv != images).flatten(1).any(dim=1)
    assert torch.equal(changed, (labels == target) & (predicted(teacher, x_adv) != target))
    assert 0 < changed.sum() < (labels == target).sum()
    assert (predicted(teacher, x_adv) == target)[labels != target].sum() == 0  # robust is never above clean


@pytest.mark.parametrize('name', ['fgsm', 'pgd'])
def test_a_wrong_image_is_not_attacked_into_a_right_one(teacher, images, labels, name):
    config = EvalAttackConfig(eps=LARGE_EPS['linf'])
    assert torch.equal(run_attack(name, teacher, images, (labels + 1) % 5, config), images)


@pytest.mark.parametrize('name', ['fgsm', 'pgd'])
def test_an_image_does_not_depend_on_its_batch(teacher, images, labels, name):
    config = EvalAttackConfig(eps=EPS['linf'])
    together = run_attack(name, teacher, images[:8], labels[:8], config, 3, index=range(40, 48))
    parts = [
        run_attack(name, teacher, images[i:j], labels[i:j], config, 3, index=range(40 + i, 40 + j))
        for i, j in ((0, 3), (3, 7), (7, 8))
    ]
    # Another batch size may round a gradient near zero to the other sign.
    assert (together == torch.cat(parts)).float().mean() > 0.99
    assert torch.equal(predicted(teacher, together), predicted(teacher, torch.cat(parts)))


def test_seed_and_index_are_the_source_of_randomness(teacher, images, labels):
    config = EvalAttackConfig(eps=8 / 255, num_steps=4)

    def attack(seed=0, index=None):
        return run_attack('pgd', teacher, images[:6], labels[:6], config, seed, index=index)

    state = torch.get_rng_state()
    first = attack()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(attack(), first)
    assert torch.equal(attack(index=list(range(6))), first)
    assert not torch.equal(attack(seed=1), first)
    assert not torch.equal(attack(index=range(1, 7)), first)


def test_each_image_starts_from_a_point_of_its_own(teacher, images):
    starts = []

    def model(x_adv):
        starts.append(x_adv.detach().clone())
        return teacher(x_adv)

    same = images[:1].expand(4, -1, -1, -1)
    run_attack('pgd', model, same, predicted(teacher, same), EvalAttackConfig(eps=0.1, num_steps=1))
    assert len({tuple(start.flatten().tolist()) for start in starts[1]}) == 4


def test_the_normalization_is_inside(teacher, images, labels):
    """A radius in pixel units moves the network's input by radius / std."""
    seen = []
    hook = teacher.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    config = EvalAttackConfig(eps=0.1)
    grey = torch.full((4, 3, 24, 24), 0.5)  # of the teacher's size: no resizing between
    run_attack('fgsm', teacher, grey, predicted(teacher, grey), config)
    hook.remove()
    moved = (seen[-1] - seen[0]).abs().amax(dim=(0, 2, 3))
    torch.testing.assert_close(moved, 0.1 / teacher.norm.std.flatten())


# AutoAttack


@pytest.mark.parametrize('norm', NORMS)
def test_autoattack_finds_no_less_than_pgd_and_stays_in_the_ball(norm):
    model = linear_teacher(5)
    x_pix = torch.rand(24, 3, 8, 8)
    target = predicted(model, x_pix)
    target[::4] = (target[::4] + 1) % 5
    right = predicted(model, x_pix) == target
    margin = model(x_pix).sort(dim=1).values.diff(dim=1)[:, -1]
    # Of the images that are right only those near the boundary: all fall to the first of the four attacks.
    near = (~right) | (margin < margin.median())
    x_pix, target, right = x_pix[near], target[near], right[near]
    config = EvalAttackConfig(eps=0.05 if norm == 'linf' else 0.6, norm=norm)
    x_adv = run_attack('autoattack', model, x_pix, target, config)
    robust = predicted(model, x_adv) == target
    robust_to_pgd = predicted(model, run_attack('pgd', model, x_pix, target, config)) == target
    assert robust.sum() <= robust_to_pgd.sum() < right.sum()
    assert not robust[~right].any()
    assert torch.equal(x_adv[~right | robust], x_pix[~right | robust])
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (length(x_adv - x_pix, norm) <= config.eps + ROUNDING).all()


@pytest.mark.slow
def test_autoattack_of_a_linear_model_is_exact():
    """A linear model's distance to the boundary is known: images are robust exactly where it exceeds eps."""
    model = linear_teacher(4)
    x_pix = 0.4 + 0.2 * torch.rand(12, 3, 8, 8)  # far from 0 and 1, so that nothing is clipped
    target = predicted(model, x_pix)
    weight, logits = model.model[1].weight / 0.25, model(x_pix)
    gaps = (logits.gather(1, target[:, None]) - logits).clamp_min(0)
    reach = (weight[target][:, None] - weight[None]).abs().sum(dim=2)
    distance = (gaps / reach).masked_fill(nn.functional.one_hot(target, 4).bool(), torch.inf).amin(dim=1)
    distance, order = distance.sort()
    eps = (distance[10] + distance[11]).item() / 2  # one image is robust, and goes through all four attacks
    x_adv = run_attack('autoattack', model, x_pix[order], target[order], EvalAttackConfig(eps=eps))
    assert (predicted(model, x_adv) == target[order]).tolist() == [False] * 11 + [True]


def test_autoattack_repeats_and_leaves_its_process_alone(capfd, caplog):
    model = linear_teacher(5)
    model.model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 5))  # the start matters
    x_pix = torch.rand(6, 3, 8, 8)
    target = predicted(model, x_pix)
    config = EvalAttackConfig(eps=LARGE_EPS['linf'])
    state = torch.get_rng_state()
    caplog.set_level(logging.DEBUG, logger='auto-attack')  # what it says, it says to this logger

    def trace(*_):  # a debugger's, say
        pass

    own = sys.gettrace()
    sys.settrace(trace)
    try:
        first = run_attack('autoattack', model, x_pix, target, config)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(own)
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.getLogger('auto-attack').level == logging.DEBUG
    assert capfd.readouterr() == ('', '')
    assert caplog.text == ''
    torch.rand(7)
    assert torch.equal(run_attack('autoattack', model, x_pix, target, config), first)
    assert not torch.equal(run_attack('autoattack', model, x_pix, target, config, seed=1), first)
    assert not torch.equal(run_attack('autoattack', model, x_pix, target, config, index=range(6, 12)), first)
    assert (predicted(model, first) != target).all()


@pytest.mark.parametrize(('num_classes', 'targets'), [(4, 3), (10, 9), (12, 9)])
def test_autoattack_takes_no_more_targets_than_there_are(monkeypatch, num_classes, targets):
    import pyautoattack

    seen = {}

    def evaluate(self, x_orig, y_orig, /, *, batch_size):
        seen.update(
            fab=self.fab.n_target_classes, apgd=self.apgd_targeted.n_target_classes, attacks=self.attacks_to_run
        )
        return x_orig, y_orig

    monkeypatch.setattr(pyautoattack.AutoAttack, 'run_standard_evaluation', evaluate)
    model = linear_teacher(num_classes)
    x_pix = torch.rand(2, 3, 8, 8)
    run_attack('autoattack', model, x_pix, predicted(model, x_pix), EvalAttackConfig())
    assert seen == {'fab': targets, 'apgd': targets, 'attacks': ['apgd-ce', 'apgd-t', 'fab-t', 'square']}


@pytest.mark.parametrize('num_classes', [2, 3])
def test_autoattack_with_too_few_classes_is_refused(num_classes):
    x_pix = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=rf'autoattack needs 4 classes or more .*got {num_classes}; use pgd'):
        run_attack('autoattack', linear_teacher(num_classes), x_pix, torch.zeros(2).long(), EvalAttackConfig())
    check_classes('autoattack', 4)
    check_classes('pgd', 2)


def test_autoattack_of_images_that_are_all_wrong_returns_them():
    model = linear_teacher(5)
    x_pix = torch.rand(3, 3, 8, 8)
    target = (predicted(model, x_pix) + 1) % 5
    assert torch.equal(run_attack('autoattack', model, x_pix, target, EvalAttackConfig()), x_pix)


# Bad input


def test_an_unknown_attack_is_refused(images, labels, teacher):
    assert ATTACKS == ('fgsm', 'pgd', 'autoattack')
    with pytest.raises(ValueError, match="attack must be one of fgsm, pgd, autoattack, got 'pgd20'"):
        run_attack('pgd20', teacher, images, labels, EvalAttackConfig())


@pytest.mark.parametrize(
    ('shape', 'labels', 'index'), [((3, 8, 8), 3, None), ((2, 3, 8, 8), 3, None), ((2, 3, 8, 8), 2, [0, 1, 2])]
)
def test_shapes_that_do_not_fit_are_refused(shape, labels, index):
    with pytest.raises(ValueError, match=r'an attack needs images \[B, 3, H, W\], one label and one index per image'):
        run_attack(
            'fgsm', linear_teacher(5), torch.rand(shape), torch.zeros(labels).long(), EvalAttackConfig(), index=index
        )


@pytest.mark.parametrize(
    ('setting', 'match'),
    [
        ({'eps': 0.0}, r'eps of an attack must be above 0, got 0\.0'),
        ({'eps': -0.1}, r'eps of an attack must be above 0, got -0\.1'),
        ({'eps': float('nan')}, 'eps of an attack must be above 0, got nan'),
        ({'eps': 8}, r'eps is in \[0, 1\] pixel units.*got 8 \(8/255 = 0\.031\?\)'),
        ({'norm': 'l1'}, "norm must be one of .*got 'l1'"),
        ({'num_steps': 0}, 'num_steps of pgd must be 1 or more, got 0'),
        ({'step_size': 2.0}, r'step_size is in \[0, 1\] pixel units.*got 2\.0'),
    ],
)
def test_settings_out_of_range_are_refused(setting, match):
    with pytest.raises(ValueError, match=match):
        EvalAttackConfig(**setting)
