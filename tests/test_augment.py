from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from taming.modules.vqvae.quantize import VectorQuantizer
from timm.data import Mixup

from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.latent_space import LatentAttackConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
TARGET = torch.tensor([0, 1, 2, 3])
# Large enough that codes change: at the released 0.1 a tiny VQGAN may undo the whole attack.
STRONG = AttackConfig(eps=3.0, step_size=3.0, random_start=0.0)


def normalize(x_pix):
    return (x_pix - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def to_pixels(x_norm):
    return x_norm * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)


@pytest.fixture
def build(teacher, vqgan):
    def build(attack=STRONG, **kwargs):
        return DADAugment(teacher, vqgan, mean=MEAN, std=STD, attack=attack, **kwargs)

    return build


def reference_reconstruction(vqgan, x_pix):
    """``Q(x)`` through taming's own quantizer."""
    quantizer = VectorQuantizer(*vqgan.codebook.shape, beta=0.25)
    quantizer.embedding.weight = vqgan.codebook
    with torch.no_grad():
        quant = quantizer(vqgan.quant_conv(vqgan.encoder(x_pix * 2 - 1)))[0]
        return (vqgan.decoder(vqgan.post_quant_conv(quant)).clamp(-1, 1) + 1) / 2


def reference_dad_view(teacher, vqgan, x_pix, target, eps, step_size, num_steps):
    """Steps 1, 3 and 4 of the paper's section 3.3, image by image, in plain arithmetic."""
    views = []
    for image, label in zip(x_pix, target, strict=True):
        x0 = reference_reconstruction(vqgan, image[None])
        x2 = x0
        for _ in range(num_steps):
            x2 = x2.detach().requires_grad_(True)
            resized = F.interpolate(x2, teacher.input_size, mode='bicubic', antialias=True).clamp(0, 1)
            log_p = teacher.model((resized - teacher.norm.mean) / teacher.norm.std).log_softmax(dim=1)[0]
            loss = -(label * log_p).sum() if label.ndim else -log_p[label]
            (gradient,) = torch.autograd.grad(loss, x2)
            delta = x2.detach() + step_size * gradient / (gradient**2).sum().sqrt() - x0
            x2 = (x0 + delta * min(1, eps / (delta**2).sum().sqrt().item())).clamp(0, 1)
        views.append(reference_reconstruction(vqgan, x2))
    return torch.cat(views)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize(('eps', 'step_size', 'num_steps'), [(3.0, 3.0, 1), (2.0, 1.5, 3)])
def test_the_whole_path_is_that_of_the_paper(build, teacher, vqgan, x_pix, eps, step_size, num_steps, soft):
    target = torch.rand(4, 5).softmax(dim=1) if soft else TARGET
    expected = reference_dad_view(teacher, vqgan, x_pix, target, eps, step_size, num_steps)
    augment = build(AttackConfig(eps=eps, step_size=step_size, num_steps=num_steps, random_start=0.0))
    views, targets = augment(normalize(x_pix), target)
    torch.testing.assert_close(to_pixels(views[4:]), expected, atol=1e-5, rtol=0)
    assert torch.equal(targets, torch.cat([target, target]))
    # The attack got through the discretization, on every image.
    moved = (expected - reference_reconstruction(vqgan, x_pix)).flatten(1).norm(dim=1)
    assert (moved > 0.1).all()


def test_views_on_the_way_are_what_they_are_called(build, teacher, vqgan, x_pix):
    views = build().make_views(x_pix, TARGET)
    torch.testing.assert_close(views.x0, reference_reconstruction(vqgan, x_pix), atol=1e-5, rtol=0)
    assert torch.equal(views.x_dad, vqgan(views.x_adv))
    assert torch.equal(views.dad_logits, teacher(views.x_dad))
    assert torch.equal(views.kept, views.dad_logits.argmax(dim=1) == TARGET)
    for name in ('x0', 'x_adv', 'x_dad'):
        view = getattr(views, name)
        assert view.shape == x_pix.shape
        assert view.min() >= 0
        assert view.max() <= 1
        assert not view.requires_grad
    distance = (views.x_adv - views.x0).flatten(1).norm(dim=1)
    assert (distance <= 3.0 + 1e-5).all()
    assert (distance > 1.0).all()  # of the 3.0, clipping to [0, 1] takes a part
    assert not views.dad_logits.requires_grad


def test_the_attack_hurts_the_teacher(build, teacher, x_pix):
    views = build(AttackConfig(eps=1.0, step_size=0.1, num_steps=3, random_start=0.0)).make_views(x_pix, TARGET)
    before, after = (F.cross_entropy(teacher(x), TARGET, reduction='none') for x in (views.x0, views.x_adv))
    assert (after > before).all()


@pytest.mark.parametrize('soft', [False, True])
def test_it_is_called_like_mixup_and_with_its_targets(build, x_pix, soft):
    input, target = normalize(x_pix), TARGET
    if soft:
        input, target = Mixup(num_classes=5)(input, target)
    result = build()(input, target)
    assert isinstance(result, tuple)
    views, targets = result
    assert views.shape == (8, 3, 16, 16)
    assert torch.equal(targets, torch.cat([target, target]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_all_clean_views_come_first_and_bit_identical(build, x_pix, dtype):
    input = normalize(x_pix).to(dtype)
    before = input.clone()
    views, _ = build()(input, TARGET)
    assert views.dtype == dtype
    assert torch.equal(views[:4], before)
    assert torch.equal(input, before)
    # Image i of the second half is made from image i of the first.
    expected = build().make_views(to_pixels(input.float()).clamp(0, 1), TARGET).x_dad
    torch.testing.assert_close(to_pixels(views[4:].float()), expected, atol=5e-3, rtol=0)


def test_the_dad_half_is_normalized_pixels(build, x_pix):
    views, _ = build()(normalize(x_pix), TARGET)
    pixels = to_pixels(views[4:])
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert pixels.std() > 0.05


def test_values_out_of_range_are_clipped_before_the_vqgan_and_kept_in_the_clean_half(build, x_pix):
    # timm's random erasing writes N(0, 1) noise into the normalized batch.
    erased = normalize(x_pix)
    erased[:, :, 4:12, 4:12] = 2 * torch.randn(4, 3, 8, 8)
    clipped = normalize(to_pixels(erased).clamp(0, 1))
    views, _ = build()(erased, TARGET)
    assert torch.equal(views[:4], erased)
    torch.testing.assert_close(views[4:], build()(clipped, TARGET)[0][4:], atol=1e-4, rtol=0)


# So weak that few codes change. An untrained VQGAN is far from the identity, so Q(Q(x)) differs from Q(x) without it.
WEAK = AttackConfig(eps=0.05, step_size=0.05, random_start=0.0)


@pytest.fixture
def mixed_target(teacher, vqgan, x_pix):
    """Labels that the teacher keeps on images 0 and 2, and misses on 1 and 3, under a weak attack."""
    logits = teacher(vqgan(vqgan(x_pix)))
    return torch.where(torch.tensor([True, False, True, False]), logits.argmax(dim=1), logits.argmin(dim=1))


@pytest.mark.parametrize('soft', [False, True])
def test_keep_label_takes_the_reconstruction_where_the_label_is_lost(build, teacher, vqgan, x_pix, mixed_target, soft):
    target = F.one_hot(mixed_target, 5) * 0.8 + 0.04 if soft else mixed_target
    free = build(WEAK).make_views(x_pix, target)
    kept = build(WEAK, keep_label=True).make_views(x_pix, target)
    assert free.kept.tolist() == [True, False, True, False]
    assert torch.equal(kept.kept, free.kept)  # said of Q(x_adv), whichever is taken
    x_vq = vqgan(x_pix)
    for i in range(4):
        expected = free.x_dad[i] if free.kept[i] else x_vq[i]
        assert torch.equal(kept.x_dad[i], expected)
        assert not torch.equal(free.x_dad[i], x_vq[i])  # the two differ: the switch shows
    torch.testing.assert_close(kept.dad_logits, teacher(kept.x_dad))
    assert torch.equal(free.dad_logits, teacher(free.x_dad))


def test_keep_label_reaches_the_batch(build, x_pix, mixed_target):
    free, _ = build(WEAK)(normalize(x_pix), mixed_target)
    kept, _ = build(WEAK, keep_label=True)(normalize(x_pix), mixed_target)
    same = [torch.equal(a, b) for a, b in zip(free[4:], kept[4:], strict=True)]
    assert same == [True, False, True, False]


def test_equal_seeds_are_bit_equal(build, x_pix):
    augment = build(AttackConfig(eps=3.0, step_size=1.0, random_start=0.8))

    def views(seed):
        torch.manual_seed(seed)
        return augment(normalize(x_pix), TARGET)[0]

    assert torch.equal(views(1), views(1))
    assert not torch.equal(views(1), views(2))


def test_a_budget_per_image_replaces_the_configured_one(build, x_pix):
    augment = build(AttackConfig(eps=3.0, step_size=3.0, random_start=1.0))
    views = augment.make_views(x_pix, TARGET, eps=torch.tensor([0.0, 2.0, 0.0, 0.5]))
    distance = (views.x_adv - views.x0).flatten(1).norm(dim=1)
    assert (distance <= torch.tensor([0.0, 2.0, 0.0, 0.5]) + 1e-5).all()
    assert (distance[[1, 3]] > 0.1).all()
    assert torch.equal(views.x_adv[[0, 2]], views.x0[[0, 2]])


def test_the_default_attack_is_the_released_one(teacher, vqgan):
    assert DADAugment(teacher, vqgan, mean=MEAN, std=STD).attack == AttackConfig()


def test_no_gradient_is_left_behind(build, teacher, vqgan, x_pix):
    # Also for a VQGAN and a teacher that nobody froze.
    teacher.requires_grad_(True)
    vqgan.requires_grad_(True)
    input = normalize(x_pix).requires_grad_(True)
    views = build().make_views(input.sigmoid(), TARGET)
    assert not views.x_dad.requires_grad
    assert input.grad is None
    assert all(parameter.grad is None for parameter in (*teacher.parameters(), *vqgan.parameters()))


def test_strict_size_refuses_what_the_factor_does_not_divide(build, vqgan):
    vqgan.strict_size = True
    with pytest.raises(ValueError, match='image size must be a multiple of 2, the factor of the VQGAN, got 16x15'):
        build()(torch.rand(4, 3, 16, 15), TARGET)


@pytest.mark.parametrize('std', [(0.0, 0.1, 0.1), (0.1, 0.1, -0.1)])
def test_a_std_that_is_not_positive_is_refused(teacher, vqgan, std):
    with pytest.raises(ValueError, match='std must be positive, up to 1'):
        DADAugment(teacher, vqgan, mean=MEAN, std=std)


# The attack from the input.


@pytest.fixture
def counted(teacher, vqgan, monkeypatch):
    """Images through the teacher, with and without a gradient, and through encoder and decoder."""
    counts = Counter()

    def count(name):
        def hook(module, inputs):
            counts[name + (' with gradient' if inputs[0].requires_grad else '')] += len(inputs[0])

        return hook

    for name, module in (('teacher', teacher.model), ('encoder', vqgan.encoder), ('decoder', vqgan.decoder)):
        module.register_forward_pre_hook(count(name))
    return counts


def test_from_the_input_it_starts_at_x_and_ends_on_codes(build, teacher, vqgan, x_pix):
    attack = AttackConfig(eps=1.0, step_size=0.7, random_start=0.0)
    views = build(attack, attack_from='input').make_views(x_pix, TARGET)
    assert torch.equal(views.x0, x_pix)
    x = x_pix.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(teacher(x), TARGET, reduction='sum'), x)
    step = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(views.x_adv, (x_pix + 0.7 * step).clamp(0, 1), atol=1e-5, rtol=0)
    assert torch.equal(views.x_dad, vqgan(views.x_adv))
    torch.testing.assert_close(views.clean_logits, teacher(x_pix))
    assert torch.equal(views.dad_logits, teacher(views.x_dad))


def test_the_random_start_stays_in_the_ball_of_x(build, x_pix):
    views = build(AttackConfig(eps=1.0, step_size=0.5, random_start=1.0), attack_from='input').make_views(x_pix, TARGET)
    distance = (views.x_adv - x_pix).flatten(1).norm(dim=1)
    assert distance.max() <= 1.0 + 1e-5
    assert distance.min() > 0.3


@pytest.mark.parametrize(
    ('attack_from', 'steps', 'expected'),
    [
        ('reconstruction', 1, {'encoder': 8, 'decoder': 8, 'teacher with gradient': 4, 'teacher': 4}),
        ('reconstruction', 3, {'encoder': 8, 'decoder': 8, 'teacher with gradient': 12, 'teacher': 4}),
        ('input', 1, {'encoder': 4, 'decoder': 4, 'teacher with gradient': 4, 'teacher': 4}),
        ('input', 3, {'encoder': 4, 'decoder': 4, 'teacher with gradient': 12, 'teacher': 4}),
        ('input', 0, {'encoder': 4, 'decoder': 4, 'teacher': 8}),
    ],
)
def test_nothing_is_computed_twice(build, counted, x_pix, attack_from, steps, expected):
    build(AttackConfig(num_steps=steps), attack_from=attack_from).make_views(x_pix, TARGET)
    assert counted == expected


def test_views_of_one_image_share_the_gradient_at_the_input(build, counted, x_pix):
    augment = build(AttackConfig(), attack_from='input')
    centre = augment.find_centre(x_pix, TARGET)
    for _ in range(3):
        augment.attack_centre(centre, TARGET)
    assert counted == {'encoder': 12, 'decoder': 12, 'teacher with gradient': 4, 'teacher': 12}


def test_from_the_input_a_lost_label_gives_the_reconstruction(build, counted, teacher, vqgan, x_pix):
    logits = build(WEAK, attack_from='input').make_views(x_pix, TARGET).dad_logits
    target = torch.cat([logits[:2].argmin(dim=1), logits[2:].argmax(dim=1)])  # two are lost from the start
    views = build(WEAK, keep_label=True, attack_from='input').make_views(x_pix, target)
    lost = ~views.kept
    assert 0 < lost.sum() < 4
    torch.testing.assert_close(views.x_dad[lost], vqgan(x_pix[lost]), atol=1e-5, rtol=0)
    assert torch.equal(views.dad_codes[lost], vqgan.encode_to_codes(x_pix[lost]))
    torch.testing.assert_close(views.dad_logits[lost], teacher(views.x_dad[lost]), atol=1e-4, rtol=1e-4)


def test_attack_from_elsewhere_is_refused(build):
    with pytest.raises(ValueError, match=r"attack_from must be one of \('reconstruction', 'input'\), got 'noise'"):
        build(attack_from='noise')


def test_models_of_another_kind_are_refused(teacher, vqgan):
    rule = r'teacher must be a timm_dad\.Teacher: Teacher\(net, mean=\.\.\., std=.*\), got EfficientNet'
    with pytest.raises(TypeError, match=rule):
        DADAugment(teacher.model, vqgan, mean=MEAN, std=STD)
    rule = r'{} must be a timm_dad\.VQGAN: load_vqgan\(PATH\), got {}'
    with pytest.raises(TypeError, match=rule.format('^vqgan', 'NoneType')):
        DADAugment(teacher, None, mean=MEAN, std=STD)
    with pytest.raises(TypeError, match=rule.format('^gradient_vqgan', 'str')):
        DADAugment(teacher, vqgan, mean=MEAN, std=STD, gradient_vqgan='tiny')
    with pytest.raises(
        TypeError, match=r'attack must be an AttackConfig, LatentAttackConfig or CodeAttackConfig, got dict'
    ):
        DADAugment(teacher, vqgan, mean=MEAN, std=STD, attack={'eps': 0.1})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: (255 * x).byte(), r'normalized images must be floating-point, got torch\.uint8'),
        (lambda x: 255 * x, r'images must be normalized, .* got values from .* to .* \(pixels from 0 to 255\?'),
        (lambda x: x * float('nan'), 'images must be normalized, .* got values from nan to nan'),
        (lambda x: x[:, :1], r'must be \[B, 3, H, W\], got shape \(4, 1, 16, 16\) \(grey images: expand'),
        (lambda x: x.permute(0, 2, 3, 1), r'got shape \(4, 16, 16, 3\) \(channels last: permute\(0, 3, 1, 2\)\)'),
        (lambda x: x[0], r'must be \[B, 3, H, W\], got shape \(3, 16, 16\)$'),
    ],
)
def test_batches_that_are_no_normalized_images_are_refused(build, x_pix, change, message):
    with pytest.raises(ValueError, match=message):
        build()(change(x_pix), TARGET)


def test_values_are_looked_at_in_the_first_batch_alone(build, x_pix, monkeypatch):
    augment = build()
    augment(normalize(x_pix), TARGET)
    monkeypatch.setattr(torch.Tensor, 'aminmax', lambda self: pytest.fail('the device is waited for'))
    monkeypatch.setattr(augment.vqgan, '_check_range', lambda x_pix: None)  # looks at each batch of a CPU
    augment(normalize(x_pix), TARGET)


def test_pixels_of_the_wrong_shape_are_refused(build, x_pix):
    with pytest.raises(ValueError, match=r'x_pix must be \[B, 3, H, W\], got shape'):
        build().make_views(x_pix[:, :1], TARGET)


def test_it_says_what_is_in_it(build, vqgan):
    text = repr(build(LatentAttackConfig(), gradient_vqgan=vqgan))
    assert text.startswith('DADAugment(teacher=Teacher(EfficientNet, 24 x 24, 5 classes), vqgan=VQGAN(32 codes of 4, ')
    assert 'gradient_vqgan=VQGAN(' in text
    assert 'attack=LatentAttackConfig(eps=0.5' in text
