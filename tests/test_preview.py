"""The steps from one image to its DAD view."""

import dataclasses

import pytest
import torch

from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import Centre, DADAugment
from timm_dad.method.code_space import CodeAttackConfig
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.preview.image import (
    describe_means,
    describe_settings,
    preview_image,
    share,
    shown_names,
)
from timm_dad.vqgan.model import VQGAN

NORM = {'mean': (0, 0, 0), 'std': (1, 1, 1)}


@pytest.fixture
def augment(teacher, vqgan):
    return DADAugment(
        teacher, vqgan, **NORM, attack=AttackConfig(eps=1.0, step_size=0.5, num_steps=2, random_start=1.0)
    )


def make(augment, x_pix, label=1, seed=3):
    return preview_image(augment, x_pix, label, title='image 7', seed=seed)


def test_the_views_are_those_of_the_augmentation(augment, x_pix):
    image = make(augment, x_pix[0])
    x_vq, vq_codes = augment.vqgan.reconstruct(x_pix[:1])
    generators = [torch.Generator().manual_seed(3)]
    centre = Centre(x_vq, (16, 16), codes=vq_codes)
    views = augment.attack_centre(centre, torch.tensor([1]), generator=generators)
    for mine, theirs in (
        (image.x_pix, x_pix[0]),
        (image.x_vq, x_vq[0]),
        (image.x_adv, views.x_adv[0]),
        (image.x_dad, views.x_dad[0]),
        (image.dad_codes, views.dad_codes[0]),
        (image.probs['x'], augment.teacher(x_pix[:1])[0].softmax(dim=0)),
        (image.probs['Q(x)'], augment.teacher(x_vq)[0].softmax(dim=0)),
        (image.probs['x_dad'], augment.teacher(views.x_dad)[0].softmax(dim=0)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert not any(value.requires_grad for value in (image.x_adv, image.x_dad, image.probs['x']))


def test_the_numbers_are_of_those_views(augment, x_pix):
    image = make(augment, x_pix[0])
    assert 0 < image.distance <= 1 + 1e-5
    assert image.distance == pytest.approx((image.x_adv - image.x_vq).square().sum().sqrt().item())
    assert image.psnr_vq == pytest.approx(-10 * (x_pix[0] - image.x_vq).square().mean().log10().item(), abs=1e-4)
    assert image.psnr_dad == pytest.approx(-10 * (x_pix[0] - image.x_dad).square().mean().log10().item(), abs=1e-4)
    assert torch.equal(image.changed, image.vq_codes != image.dad_codes)
    assert share(image.changed) == image.changed.sum().item() / 64
    first, second, third = image.top('x')
    assert first[1] >= second[1] >= third[1]
    assert first == (image.probs['x'].argmax().item(), image.probs['x'].max().item())
    assert len(image.top('x', 9)) == 5
    assert image.is_right('x') == (first[0] == 1)
    assert make(augment, x_pix[0], label=first[0]).is_right('x')


def test_what_the_attack_changes_is_told_apart_from_what_encoding_again_changes(teacher, vqgan, x_pix):
    calm = make(DADAugment(teacher, vqgan, **NORM, attack=AttackConfig(eps=0.0)), x_pix[0])
    assert calm.changed.any()  # Q(Q(x)) is not Q(x)
    assert not calm.changed_by_attack.any()
    hard = make(DADAugment(teacher, vqgan, **NORM, attack=AttackConfig(eps=3.0, step_size=3.0)), x_pix[0])
    assert hard.changed_by_attack.any()


def test_where_the_label_is_not_kept_nothing_changes(teacher, vqgan, x_pix):
    augment = DADAugment(teacher, vqgan, **NORM, attack=AttackConfig(eps=3.0, step_size=3.0), keep_label=True)
    first = make(augment, x_pix[0]).top('x_dad', 5)
    lost = make(augment, x_pix[0], label=first[-1][0])
    assert torch.equal(lost.x_dad, lost.x_vq)
    assert not lost.changed.any()
    assert not lost.changed_by_attack.any()
    assert 'where the teacher loses the label x_dad is Q(x)' in describe_settings(augment)


def test_an_image_depends_on_its_seed_alone(augment, x_pix):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(augment, x_pix[0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    make(augment, x_pix[1])
    assert torch.equal(make(augment, x_pix[0]).x_adv, first.x_adv)
    assert not torch.equal(make(augment, x_pix[0], seed=4).x_adv, first.x_adv)


@pytest.mark.parametrize('label', [-1, 5])
def test_a_label_that_the_teacher_does_not_have(augment, x_pix, label):
    with pytest.raises(ValueError, match=rf'labels must be from 0 to 4, image 7 has {label}'):
        make(augment, x_pix[0], label=label)


def test_an_image_that_the_vqgan_does_not_take(augment):
    augment.vqgan.strict_size = True
    with pytest.raises(ValueError, match='image size must be a multiple of 2'):
        make(augment, torch.rand(3, 15, 16))


def test_settings_and_means_in_a_line(augment, x_pix):
    settings = describe_settings(augment)
    assert settings == (
        'attack: l2, eps 1, 2 steps of 0.5, random start with probability 1; VQGAN: 32 codes of 2 x 2 pixels'
    )
    images = [make(augment, x_pix[index], label=index) for index in range(3)]
    means = describe_means(images)
    assert means.startswith(f'mean of 3: PSNR to x of Q(x) {sum(image.psnr_vq for image in images) / 3:.1f} dB')
    assert f'L2 {sum(image.distance for image in images) / 3:.3f}' in means
    assert f'codes changed {sum(share(image.changed) for image in images) / 3:.1%}' in means
    right = [sum(image.probs[view].argmax().item() == image.labels[0] for image in images) for view in images[0].probs]
    assert means.endswith(f'teacher right on x {right[0]}, Q(x) {right[1]}, x_dad {right[2]}')


def test_attacks_that_differ_are_told_apart(teacher, vqgan, vqgan_config):
    tiny = VQGAN(dataclasses.replace(vqgan_config, networks='tiny'))
    tiny.codebook.data.copy_(vqgan.codebook)
    latent, codes = LatentAttackConfig(), CodeAttackConfig(neighbours=8)
    attacks = [
        (attack, gradient_vqgan)
        for attack in (
            latent,
            LatentAttackConfig(objective='disagreement'),
            LatentAttackConfig(num_steps=0),
            LatentAttackConfig(num_steps=0, start_size=1.0),
            codes,
            dataclasses.replace(codes, candidates=1.0),
            dataclasses.replace(codes, num_steps=0),
        )
        for gradient_vqgan in (None, tiny)
    ]
    told = [
        describe_settings(
            DADAugment(teacher, vqgan, mean=(0.5,) * 3, std=(0.5,) * 3, attack=attack, gradient_vqgan=gradient_vqgan)
        )
        for attack, gradient_vqgan in attacks
    ]
    assert len(set(told)) == len(attacks)
    assert 'latents, l2, eps 0.5, 1 step of 0.5, random start with probability 1 at 0.5 of eps' in told[0]


def test_names_for_readers():
    assert shown_names(None, 3) == ['0', '1', '2']
    assert shown_names(['cat', 'n01440764', 'n99999999'], 3) == ['cat', 'tench', 'n99999999']


@pytest.mark.parametrize('attack', [LatentAttackConfig(), CodeAttackConfig(neighbours=8)])
def test_other_spaces_are_shown_by_what_they_did_to_the_picture(teacher, vqgan, x_pix, attack):
    augment = DADAugment(teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1), attack=attack)
    image = make(augment, x_pix[0])
    torch.testing.assert_close(image.perturbation, image.x_dad - image.x_vq)
    assert torch.equal(image.calm_codes, image.vq_codes)
    assert torch.equal(image.changed, image.changed_by_attack)
    share = image.changed.float().mean().item()
    assert image.distance == pytest.approx(share if attack.space == 'codes' else attack.eps)
    assert describe_settings(augment).startswith(f'attack: {"codes" if attack.space == "codes" else "latents"}, ')
    assert f'{image.measure} {image.distance:.3f}' in describe_means([image])
