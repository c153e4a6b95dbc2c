"""Attacks in the latent space and on codes: what holds of every view, whoever the teacher and the VQGAN are."""

import dataclasses

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig, ascend, radii
from timm_dad.method.augment import DADAugment
from timm_dad.method.code_space import CodeAttackConfig, CodeSpace
from timm_dad.method.latent_space import LatentAttackConfig, LatentSpace
from timm_dad.method.loss import teacher_cross_entropy
from timm_dad.method.task import DADTask
from timm_dad.vqgan.model import VQGAN

TARGET = torch.tensor([0, 1, 2, 3])
HALF = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
LATENT, CODES = LatentAttackConfig(), CodeAttackConfig(neighbours=8)
KINDS = pytest.mark.parametrize('attack', [LATENT, CODES], ids=['latent', 'codes'])
OTHERS = pytest.mark.parametrize('quantizer', ['nearest', 'gumbel'])


@pytest.fixture
def build(teacher, vqgan):
    def build(attack, **kwargs):
        return DADAugment(teacher, kwargs.pop('vqgan', vqgan), **HALF, attack=attack, **kwargs)

    return build


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def make(augment, x_pix, target=TARGET, seeds=range(4), **kwargs):
    centre = augment.find_centre(x_pix, target)
    return augment.attack_centre(centre, target, generator=generators(seeds), **kwargs)


def gumbel(config):
    vqgan = VQGAN(dataclasses.replace(config, quantizer='gumbel')).eval()
    with torch.no_grad():
        vqgan.quantize.embed.weight.normal_()
        vqgan.quantize.proj.weight.normal_()
        vqgan.quant_conv.weight.mul_(3)
    return vqgan


def loss_of(augment, codes):
    return teacher_cross_entropy(augment.teacher(augment.vqgan.decode(augment.vqgan.embed(codes))), TARGET)


def test_a_view_is_made_of_the_codes_that_it_says(build, x_pix):
    for attack in (LATENT, CODES):
        augment = build(attack)
        views = make(augment, x_pix)
        assert torch.equal(views.x_dad, augment.vqgan.decode_codes(views.dad_codes))
        assert torch.equal(views.dad_logits, augment.teacher(views.x_dad))
        assert torch.equal(views.kept, views.dad_logits.argmax(dim=1) == TARGET)
        assert views.x_dad.shape == x_pix.shape
        assert not views.x_dad.requires_grad


@pytest.mark.parametrize('steps', [0, 1, 3])
@pytest.mark.parametrize('eps', [0.1, 0.5, 1.5])
def test_latents_stay_in_the_ball_of_their_image(build, x_pix, eps, steps):
    augment = build(LatentAttackConfig(eps=eps, step_size=eps, num_steps=steps))
    views = make(augment, x_pix)
    z0 = augment.vqgan.encode(x_pix)
    assert torch.equal(views.x0, z0)
    moved = (views.x_adv - z0).flatten(1).norm(dim=1) / z0.flatten(1).norm(dim=1)
    assert (moved <= eps * (1 + 1e-5)).all()
    torch.testing.assert_close(views.distance, moved)
    assert (moved > 0.4 * eps).all()  # the random start alone is half of it


def test_noise_as_long_as_the_attack_is_an_attack_without_steps(build, x_pix):
    views = make(build(LatentAttackConfig(eps=0.5, num_steps=0, start_size=1.0)), x_pix)
    torch.testing.assert_close(views.distance, torch.full((4,), 0.5))


@given(seed=st.integers(0, 1000))
def test_a_radius_for_each_image(seed):
    z0 = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(seed))
    eps = torch.rand(3, generator=torch.Generator().manual_seed(seed + 1))
    expected = eps * z0.flatten(1).norm(dim=1)
    torch.testing.assert_close(radii(z0, LATENT, eps).flatten(), expected)


def test_an_image_with_a_radius_of_zero_becomes_its_reconstruction(build, x_pix):
    for attack in (LATENT, CODES):
        augment = build(attack)
        views = make(augment, x_pix, eps=torch.tensor([0.0, 0.25, 0.0, 0.25]))
        x_vq, codes = augment.vqgan.reconstruct(x_pix)
        assert torch.equal(views.x_dad[::2], x_vq[::2])
        assert (views.dad_codes != codes).flatten(1).any(dim=1).tolist() == [False, True, False, True]


def test_the_loss_of_the_teacher_rises(build, x_pix):
    """Noise of the same length raises it less."""
    calm = {}
    for attack, steps in ((LATENT, 3), (CODES, 1)):
        augment = build(dataclasses.replace(attack, num_steps=steps))
        views = make(augment, x_pix)
        attacked = loss_of(augment, views.dad_codes)
        noise = dataclasses.replace(attack, num_steps=0, **({'start_size': 1.0} if attack is LATENT else {}))
        at_random = torch.stack(
            [loss_of(augment, make(build(noise), x_pix, seeds=range(i, i + 4)).dad_codes) for i in range(8)]
        )
        calm[attack.space] = (attacked.mean() - at_random.mean()).item()
        assert attacked.mean() > loss_of(augment, augment.vqgan.encode_to_codes(x_pix)).mean()
    assert min(calm.values()) > 0, calm


@KINDS
@OTHERS
def test_equal_seeds_give_equal_bits_and_an_image_does_not_depend_on_its_batch(
    build, vqgan, vqgan_config, x_pix, attack, quantizer
):
    vqgan = gumbel(vqgan_config) if quantizer == 'gumbel' else vqgan
    augment = build(attack, vqgan=vqgan)
    views = make(augment, x_pix)
    again = make(augment, x_pix)
    assert torch.equal(views.x_adv, again.x_adv)
    assert torch.equal(views.x_dad, again.x_dad)
    assert not torch.equal(views.x_adv, make(augment, x_pix, seeds=range(4, 8)).x_adv)
    alone = make(augment, x_pix[2:3], TARGET[2:3], seeds=[2])
    torch.testing.assert_close(alone.x_adv.double(), views.x_adv[2:3].double(), rtol=1e-3, atol=1e-4)
    assert (alone.dad_codes == views.dad_codes[2:3]).float().mean() > 0.9
    assert (views.dad_codes != vqgan.encode_to_codes(x_pix)).any()


@KINDS
def test_pieces_draw_as_the_whole_batch(build, x_pix, attack):
    whole, pieces = (build(attack, micro_batch=size) for size in (4, 3))
    found = []
    for augment in (whole, pieces):
        torch.manual_seed(3)
        found.append(augment.make_views(x_pix, TARGET))
    torch.testing.assert_close(found[0].x_adv.double(), found[1].x_adv.double(), rtol=1e-3, atol=1e-4)


@OTHERS
def test_the_direction_is_that_of_finite_differences(teacher, vqgan, vqgan_config, x_pix, quantizer):
    """The gradient straight through the quantizer is that at the quantized latents, as if they had moved."""
    teacher.double()
    vqgan = (gumbel(vqgan_config) if quantizer == 'gumbel' else vqgan).double().requires_grad_(False)
    z = vqgan.encode(x_pix[:1].double()).requires_grad_(True)

    def loss(z_q):
        return teacher_cross_entropy(teacher(vqgan.decode(z_q)).double(), TARGET[:1]).sum()

    z_q = vqgan.embed(vqgan.codes_of(z)).double()
    (gradient,) = torch.autograd.grad(loss(vqgan.quantize_straight_through(z)), z)
    torch.testing.assert_close(vqgan.quantize_straight_through(z), z_q, rtol=0, atol=1e-6)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()
    step = direction
    if quantizer == 'gumbel':  # moves as the mean code does
        _, step = torch.func.jvp(lambda z: mean_code(vqgan, z), (z.detach(),), (direction,))
    h = 1e-3
    difference = (loss(z_q + h * step) - loss(z_q - h * step)) / (2 * h)
    assert difference.item() == pytest.approx((gradient * direction).sum().item(), rel=0.02, abs=1e-7)


def mean_code(vqgan, z):
    logits = torch.nn.functional.conv2d(z, vqgan.quantize.proj.weight, vqgan.quantize.proj.bias)
    return torch.einsum('bkhw,kd->bdhw', logits.softmax(dim=1), vqgan.codebook)


def test_codes_are_replaced_by_near_ones_and_as_many_as_were_asked_for(build, x_pix):
    for steps in (0, 1):
        augment = build(CodeAttackConfig(eps=0.25, neighbours=5, num_steps=steps))
        views = make(augment, x_pix)
        before, after = views.x0.flatten(1), views.dad_codes.flatten(1)
        changed = before != after
        assert (changed.sum(dim=1) == 16).all() if not steps else (changed.sum(dim=1) <= 16).all()
        torch.testing.assert_close(views.distance, changed.float().mean(dim=1))
        codebook = augment.vqgan.codebook
        ranks = torch.cdist(codebook, codebook).argsort(dim=1).argsort(dim=1)
        assert ranks[before[changed], after[changed]].max() <= 5


def test_swaps_are_those_with_the_largest_first_order_gain(teacher, vqgan, x_pix):
    """All positions are candidates: nothing but the gradient decides, and every other choice gains less."""
    config = CodeAttackConfig(eps=0.1, candidates=1.0, neighbours=31)
    augment = DADAugment(teacher, vqgan, **HALF, attack=config)
    centre = augment.find_centre(x_pix, TARGET)
    views = augment.attack_centre(centre, TARGET, generator=generators(range(4)))
    at, codebook = centre.gradient.flatten(2).transpose(1, 2), vqgan.codebook
    before, after = centre.x0.flatten(1), views.dad_codes.flatten(1)
    gains = at @ codebook.t() - (at * codebook[before]).sum(dim=-1, keepdim=True)  # of every code at every place
    best = gains.max(dim=-1).values
    for image in range(4):
        places = (before[image] != after[image]).nonzero().flatten()
        assert set(places.tolist()) == set(best[image].topk(6).indices.tolist())  # a tenth of 64
        torch.testing.assert_close(gains[image, places, after[image, places]], best[image, places])


def test_the_label_filter_takes_the_reconstruction(build, x_pix):
    for attack in (LATENT, CODES):
        augment = build(dataclasses.replace(attack, eps=0.5), keep_label=True)
        x_vq, codes = augment.vqgan.reconstruct(x_pix)
        views = make(augment, x_pix)
        assert not views.kept.all()
        lost = ~views.kept
        assert torch.equal(views.x_dad[lost], x_vq[lost])
        assert torch.equal(views.dad_codes[lost], codes[lost])
        torch.testing.assert_close(views.dad_logits[lost], augment.teacher(x_vq[lost]))


def test_sides_that_the_factor_does_not_divide(build):
    x_pix = torch.rand(2, 3, 15, 13)
    for attack in (LATENT, CODES):
        views = make(build(attack), x_pix, TARGET[:2], seeds=range(2))
        assert views.x_dad.shape == x_pix.shape
        assert views.dad_codes.shape == (2, 8, 7)


def test_no_pass_that_is_not_needed(build, x_pix):
    """One encode; of latents two decodes, one of them with a gradient; of codes the gradient once for all views."""
    expected = {'latent': (1, 4, 4), 'codes': (1, 3, 3)}  # encodes, decodes, teacher forwards of two views
    for attack in (LATENT, CODES):
        augment = build(attack, micro_batch=4)
        counts = dict.fromkeys(('encoder', 'decoder', 'teacher'), 0)

        def count(name, counts=counts):
            counts[name] += 1

        modules = {'encoder': augment.vqgan.encoder, 'decoder': augment.vqgan.decoder, 'teacher': augment.teacher}
        handles = [m.register_forward_hook(lambda *_, name=name: count(name)) for name, m in modules.items()]
        centre = augment.find_centre(x_pix, TARGET)
        for _ in range(2):
            augment.attack_centre(centre, TARGET)
        for handle in handles:
            handle.remove()
        assert tuple(counts.values()) == expected[attack.space]


def test_the_gradient_goes_through_the_other_decoder_alone(build, vqgan, vqgan_config, x_pix):
    tiny = VQGAN(dataclasses.replace(vqgan_config, networks='tiny')).eval()
    with torch.no_grad():
        tiny.codebook.copy_(vqgan.codebook)
    decoded = []
    tiny.decoder.register_forward_hook(lambda *_: decoded.append(torch.is_grad_enabled()))
    for attack in (LATENT, CODES):
        augment = build(attack, gradient_vqgan=tiny)
        views = make(augment, x_pix)
        assert torch.equal(views.x_dad, vqgan.decode_codes(views.dad_codes))
        assert not torch.equal(views.x_adv, make(build(attack), x_pix).x_adv)
    assert decoded == [True, True]


def test_disagreement_ascends_where_teacher_and_student_differ(teacher, vqgan, student, x_pix):
    config = LatentAttackConfig(objective='disagreement', num_steps=3, step_size=0.2)
    augment = DADAugment(teacher, vqgan, **HALF, attack=config)
    with pytest.raises(ValueError, match='needs the student'):
        augment.make_views(x_pix, TARGET)
    DADTask(student, teacher, augment, **HALF, verbose=False).train()
    batch_stats = {name: value.clone() for name, value in student.state_dict().items()}
    views = make(augment, x_pix)
    assert student.training
    assert all(parameter.grad is None for parameter in student.parameters())
    for name, value in student.state_dict().items():
        assert torch.equal(value, batch_stats[name]), name

    def differ(codes):
        with augment.disagreement.evaluating():
            return augment.disagreement(vqgan.decode(vqgan.embed(codes))).mean()

    noise = dataclasses.replace(config, num_steps=0, start_size=1.0)
    augment.attack = noise
    assert differ(views.dad_codes) > differ(make(augment, x_pix).dad_codes)


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'test_vit'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_disagreement_in_a_step_of_any_student(teacher, vqgan, x_pix, name, dtype):
    """Checkpointing computes the forward once more: in evaluation mode, too, with no trace in batch statistics."""
    size = {'img_size': 16, 'patch_size': 8} if name == 'test_vit' else {}
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        student = timm.create_model(name, num_classes=5, drop_path_rate=0.0, **size).to(dtype)
        student.set_grad_checkpointing(checkpointing)
        augment = DADAugment(teacher, vqgan, **HALF, attack=LatentAttackConfig(objective='disagreement'))
        task = DADTask(student, teacher, augment, **HALF, verbose=False).train()
        statistics = {name: value.clone() for name, value in student.state_dict().items() if 'running' in name}
        views = make(augment, x_pix)
        for name_, value in student.state_dict().items():
            assert name_ not in statistics or torch.equal(value, statistics[name_])
        assert student.training
        result = task((x_pix * 2 - 1).to(dtype), TARGET)
        result['loss'].backward()
        assert result['loss'].isfinite()
        found.append(views.dad_codes)
    assert (found[0] == found[1]).float().mean() > 0.95


def test_a_task_freezes_the_other_decoder_and_takes_it_along(student, teacher, vqgan, vqgan_config):
    tiny = VQGAN(dataclasses.replace(vqgan_config, networks='tiny')).train()
    tiny.codebook.data.copy_(vqgan.codebook)
    augment = DADAugment(teacher, vqgan, **HALF, attack=LATENT, gradient_vqgan=tiny)
    task = DADTask(student, teacher, augment, **HALF, verbose=False)
    assert not tiny.training
    assert not any(parameter.requires_grad for parameter in tiny.parameters())
    assert not any('vqgan' in name for name in task.state_dict())
    task.load_state_dict(task.state_dict())
    assert not task.train().gradient_vqgan.training
    task.to('meta')
    assert {part.device.type for part in tiny.parameters()} == {'meta'}


@KINDS
@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_precisions(build, teacher, vqgan, x_pix, attack, precision):
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    views = make(build(attack), x_pix)
    assert views.x_dad.dtype == torch.float32
    assert views.x_dad.isfinite().all()
    assert views.distance.max() > 0


ON_THE_SPHERE = LatentAttackConfig(start_size=1.0)  # where rounding moves a point that nothing else does


@pytest.mark.parametrize('value', [0.0, float('nan')])
@pytest.mark.parametrize('attack', [LATENT, ON_THE_SPHERE, CODES, AttackConfig()])
def test_gradients_that_move_nothing_are_told(build, teacher, x_pix, attack, value):
    teacher.register_full_backward_hook(lambda module, inputs, outputs: tuple(part * value for part in inputs))
    for seed in range(4):
        with pytest.raises(ValueError, match=r'gradients .* are zero or not finite'):
            make(build(attack), x_pix, seeds=range(seed, seed + 4))


def test_a_small_step_from_the_sphere_is_one(build, x_pix):
    make(build(dataclasses.replace(ON_THE_SPHERE, step_size=0.001)), x_pix)


def test_an_attack_that_is_replaced_takes_its_objective_along(student, teacher, vqgan, x_pix):
    augment = DADAugment(teacher, vqgan, **HALF, attack=LatentAttackConfig(objective='disagreement'))
    DADTask(student, teacher, augment, **HALF, verbose=False)
    against_student = make(augment, x_pix)
    augment.attack = LATENT
    views = make(augment, x_pix)
    assert torch.equal(views.x_adv, make(DADAugment(teacher, vqgan, **HALF, attack=LATENT), x_pix).x_adv)
    assert not torch.equal(views.x_adv, against_student.x_adv)


@pytest.mark.parametrize(
    ('config', 'kwargs', 'message'),
    [
        (LatentAttackConfig, {'eps': 5.0}, 'eps is in units of the length of the latents, from 0 to 2, got 5'),
        (LatentAttackConfig, {'step_size': -1.0}, 'step_size is in units'),
        (LatentAttackConfig, {'norm': 'linf'}, 'norm must be l2 in the latent space'),
        (LatentAttackConfig, {'start_size': 1.5}, 'start_size is a fraction of the radius'),
        (LatentAttackConfig, {'objective': 'entropy'}, 'objective must be one of'),
        (LatentAttackConfig, {'num_steps': -1}, 'num_steps must be 0 or more'),
        (CodeAttackConfig, {'eps': 5.0}, 'eps is in fractions of the codes of an image, from 0 to 1, got 5'),
        (CodeAttackConfig, {'num_steps': 2}, 'num_steps must be 0'),
        (CodeAttackConfig, {'neighbours': 0}, 'neighbours must be 1 or more'),
        (CodeAttackConfig, {'candidates': 0.1}, 'candidates is a fraction, from eps'),
    ],
)
def test_values_out_of_range(config, kwargs, message):
    with pytest.raises(ValueError, match=message):
        config(**kwargs)


def test_models_that_do_not_fit(build, vqgan, vqgan_config):
    with pytest.raises(ValueError, match='neighbours must be at most 31'):
        build(CodeAttackConfig(neighbours=32))
    with pytest.raises(ValueError, match='attack_from is for attacks on pixels'):
        build(LATENT, attack_from='input')
    with pytest.raises(ValueError, match='gradient_vqgan is for attacks on latents or codes'):
        build(AttackConfig(), gradient_vqgan=vqgan)
    with pytest.raises(ValueError, match='must have the codebook and factor of the VQGAN'):
        build(LATENT, gradient_vqgan=VQGAN(vqgan_config))
    larger = VQGAN(dataclasses.replace(vqgan_config, ddconfig={**vqgan_config.ddconfig, 'ch_mult': [1, 1, 2]}))
    larger.codebook.data.copy_(vqgan.codebook)
    with pytest.raises(ValueError, match='must have the codebook and factor of the VQGAN'):
        build(LATENT, gradient_vqgan=larger)
    with pytest.raises(ValueError, match='create another DADAugment'):
        build(LATENT).attack = AttackConfig()


def test_spaces_are_chosen_by_the_class_of_the_attack(build):
    assert isinstance(build(LATENT).space, LatentSpace)
    assert isinstance(build(CODES).space, CodeSpace)


def test_ascend_alone_starts_where_the_config_says():
    z = torch.randn(3, 4, 2, 2)
    moved = ascend(lambda z: z.flatten(1).sum(dim=1), z, LatentAttackConfig(num_steps=0)) - z
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), 0.25 * z.flatten(1).norm(dim=1))


def test_a_schedule_scales_radius_and_step(build):
    assert LatentAttackConfig(eps=0.5, step_size=0.25).scaled(0.1) == LatentAttackConfig(eps=0.1, step_size=0.05)
    assert CodeAttackConfig(eps=0.5).scaled(0.1) == CodeAttackConfig(eps=0.1)


def test_an_attack_that_is_not_to_move_is_not_stuck(build, x_pix):
    """No radius, no step, or so few codes that none is replaced."""
    for attack in (
        LatentAttackConfig(eps=0.0),
        LatentAttackConfig(step_size=0.0),
        AttackConfig(step_size=0.0),
        CodeAttackConfig(eps=0.001, neighbours=8),
    ):
        assert make(build(attack), x_pix).x_dad.isfinite().all()
