"""``--eval-suites``: which classes, which figures, where they go; and that training does not notice."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from folders import CLASSES, write_pictures
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.data import ImageNetInfo
from timm.task import ClassificationTask
from torch import nn

import train_dad
from timm_dad.evaluation.predict import EvalConfig
from timm_dad.evaluation.suites.suite import Part, Suite
from timm_dad.teachers.teacher import Teacher
from timm_dad.training.suites import OnPixels, StudentSuites, match_suite, open_eval_suites
from timm_dad.training.suites_hook import SuitesHook

WNIDS = list(ImageNetInfo().label_names())


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6, validation=3)


def suite(names, count=None, **more):
    values = {'name': 'a', 'kind': 'ood', 'parts': (Part(name='test', dataset=[]),), **more}
    return Suite(class_names=names, num_classes=len(names) if names else count, **values)


# --- classes --------------------------------------------------------------------------------------------------------


def test_classes_are_found_by_name():
    assert match_suite(suite(CLASSES), 4, CLASSES) is None
    assert match_suite(suite(('tree', 'cat')), 4, CLASSES) == [3, 0]
    assert match_suite(suite(('tree', 'fish', 'dog', 'cat')), 4, CLASSES) == [3, 2, 1, 0]
    assert match_suite(suite(CLASSES), 4, None) is None
    assert match_suite(suite(None, 4), 4, CLASSES) is None


def test_a_student_of_1000_classes_without_names_knows_imagenets():
    assert match_suite(suite((WNIDS[7], WNIDS[3])), 1000, None) == [7, 3]
    assert match_suite(suite(tuple(WNIDS)), 1000, WNIDS) is None
    assert match_suite(suite(('chair',), groups=((WNIDS[7],),)), 1000, None) is None


@pytest.mark.parametrize(
    ('names', 'count', 'message'),
    [
        (('bee', 'cat', 'ant'), None, r'--eval-suites a: data must have as many classes as --num-classes, 4, got 3'),
        (None, None, r'as many classes as --num-classes, 4, got 3'),
        (('bee', 'cat', 'dog', 'fish'), None, r"data must have classes of the training data; not \['bee'\]"),
    ],
)
def test_classes_that_a_student_does_not_know(names, count, message):
    if names is None:
        with pytest.raises(ValueError, match=message):
            match_suite(suite(('x', 'y', 'z')), 4, None)
    else:
        with pytest.raises(ValueError, match=message):
            match_suite(suite(names), 4, CLASSES)


# --- figures --------------------------------------------------------------------------------------------------------


class Pictures:
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.new('RGB', (8, 8), (index, 0, 0)), self.labels[index]

    def filename(self, index, *, absolute=False):
        return str(index)


class ByRed(nn.Module):
    """Normalized red is the class, of 6."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x_norm):
        return -((x_norm[:, 0].mean(dim=(1, 2))[:, None] - torch.arange(6)) ** 2) * self.scale


CONFIG = {'input_size': (3, 8, 8), 'mean': (0, 0, 0), 'std': (1 / 255, 1, 1), 'interpolation': 'bicubic', 'crop_pct': 1}
EVALUATION = EvalConfig(workers=0, batch_size=2)
CPU = torch.device('cpu')


def by_red(suites):
    return StudentSuites(suites, ByRed(), CONFIG, 6, 'abcdef')


def hook(suites, folder):
    task = ClassificationTask(ByRed(), nn.CrossEntropyLoss(), device=CPU, verbose=False)
    more = {'batch_size': 2, 'workers': 0, 'interval': 0, 'use_ema': True, 'seen': ()}
    return SuitesHook(by_red(suites), task, Accelerator(), folder, 1, **more)


def figures(suites, folder):
    hook(suites, folder).at_end()
    with open(folder / 'suites.csv', newline='') as file:
        return {row['suite']: (float(row['top1']), float(row['top5'])) for row in csv.DictReader(file)}


def test_figures_are_of_the_suites_classes_and_the_mean_of_its_parts(tmp_path):
    parts = (Part(name='x', dataset=Pictures([0, 1, 2, 3])), Part(name='y', dataset=Pictures([0, 1, 1, 1])))
    # Of the classes 0 and 2 alone, picture 1 lies between them, and the first of two equals is taken.
    two = (Part(name='x', dataset=Pictures([0, 0, 1, 1])),)
    found = figures([suite(tuple('abcdef'), name='whole', parts=parts), suite(('a', 'c'), parts=two)], tmp_path)
    assert found['whole'] == (75.0, 100.0)
    assert found['a'][0] in (75.0, 100.0)
    assert found['a'][1] == 100.0


def test_of_imagenet_v2_the_figure_is_that_of_matched_frequency(tmp_path):
    parts = (
        Part(name='matched-frequency', dataset=Pictures([0, 1, 2, 1])),
        Part(name='top-images', dataset=Pictures([1, 0, 0, 0])),
    )
    assert figures([suite(None, 6, name='imagenet-v2', parts=parts)], tmp_path)['imagenet-v2'] == (75.0, 100.0)


# --- sizes ----------------------------------------------------------------------------------------------------------


class Squares(Pictures):
    def __getitem__(self, index):
        return Image.new('RGB', (48, 40), (index, 0, 0)), self.labels[index]


def uncut(**more):
    return suite(None, 4, name='imagenet-c', parts=(Part(name='fog/1', dataset=Squares([0, 1])),), resize=False, **more)


NOTE = 'student takes only images of 32 x 32: those of imagenet-c, 48 x 40, are resized for it.'


@pytest.mark.parametrize(('name', 'cfg', 'resized'), [
    ('test_resnet', {'fixed_input_size': False}, False),
    ('test_vit', {'fixed_input_size': True}, True),
    ('test_vit', None, True),  # nothing is known of it
])  # fmt: skip
def test_pictures_that_go_in_uncut_are_resized_for_networks_of_one_size_alone(name, cfg, resized, caplog):
    student = timm.create_model(name, num_classes=4, **({'img_size': 32} if 'vit' in name else {}))
    student.pretrained_cfg = cfg
    suites = StudentSuites([uncut()], student, {**CONFIG, 'input_size': (3, 32, 32)}, 4, None)
    assert (NOTE in caplog.text) is resized
    assert suites.notes == [NOTE] * resized
    assert student.training
    found = suites.evaluate(student, None, EVALUATION, CPU)
    assert len(found['student']['imagenet-c']['fog/1']) == 2


@pytest.mark.parametrize('size', [(40, 48), (32, 32)])
def test_nothing_is_said_where_pictures_have_the_size_or_are_cut_to_it(size):
    student = timm.create_model('test_vit', num_classes=4, img_size=size)
    opened = uncut() if size == (40, 48) else suite(None, 4, parts=uncut().parts)
    assert StudentSuites([opened], student, {**CONFIG, 'input_size': (3, *size)}, 4, None).notes == []


def test_resized_pictures_are_those_that_a_teacher_gets():
    x_pix = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    network = timm.create_model('test_resnet', num_classes=4).eval()
    for interpolation, same in (('bilinear', 'bilinear'), ('bicubic', 'bicubic'), ('random', 'bicubic')):
        teacher = Teacher(
            network, mean=(0.5,) * 3, std=(0.2,) * 3, input_size=(32, 32), num_classes=4, interpolation=same
        )
        student = OnPixels(network, (0.5,) * 3, (0.2,) * 3, (32, 32), interpolation)
        torch.testing.assert_close(student(x_pix), network(teacher.normalize(x_pix)))


# --- the report -----------------------------------------------------------------------------------------------------


def test_the_report_is_that_of_evaluate_with_a_note_on_sizes(tmp_path, monkeypatch, caplog):
    parts = (Part(name='x', dataset=Pictures([0, 1, 2, 1])),)
    suites = [suite(None, 6, name=name, kind=kind, parts=parts) for name, kind in (('val', 'clean'), ('a', 'ood'))]
    writer = hook([*suites, uncut()], tmp_path)
    teacher = OnPixels(ByRed(), CONFIG['mean'], CONFIG['std'])
    predictions = writer.suites.evaluate(ByRed(), teacher, EVALUATION, CPU)
    writer._write_report(predictions)
    assert {path.name for path in tmp_path.iterdir()} >= {'report.json', 'report.csv', 'report.md', 'ood.png'}
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['figures']['teacher']['val']['*']['top1']['value'] == 75.0
    assert report['differences']['teacher']['a']['*']['top1']['value'] == 0.0
    assert 'student takes only images of 8 x 8: those of imagenet-c, 48 x 40, are resized for it.' in report['notes']
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    writer._write_report(predictions)
    assert 'No plots: matplotlib is missing' in caplog.text


def test_the_student_is_not_frozen():
    network = OnPixels(ByRed().double(), (0, 0, 0), (1 / 255, 1, 1))
    logits = network(torch.full((1, 3, 2, 2), 3 / 255))
    assert logits.dtype == torch.float64
    assert logits.argmax() == 3
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_rows_of_an_epoch_are_replaced(tmp_path):
    suites = [suite(None, 6, parts=(Part(name='x', dataset=Pictures([0, 1, 2, 1])),))]
    (tmp_path / 'suites.csv').write_bytes(b'epoch,model,suite,top1,top5\r\n-1,student,a,1,2\r\n0,student,a,3,4\r\n')
    for _ in range(2):
        hook(suites, tmp_path).at_end()
        assert (tmp_path / 'suites.csv').read_text().splitlines() == [
            'epoch,model,suite,top1,top5', '-1,student,a,1,2', '0,student,a,75.0000,100.0000'
        ]  # fmt: skip


def test_a_suite_that_is_not_there():
    with pytest.raises(ValueError, match=r'--eval-suites a: no images for split validation: there is no folder now'):
        open_eval_suites(['demo/noto', 'a=nowhere'])
    with pytest.raises(
        ValueError, match=r'--eval-suites: the report uses the name mean-ood for its mean: give another NAME'
    ):
        open_eval_suites(['mean-ood=nowhere'])


# --- the trainer ----------------------------------------------------------------------------------------------------


def flags(pictures, output, *more):
    return [
        *('--data-dir', str(pictures), '--output', str(output), '--experiment', 'run', '--model', 'test_resnet'),
        *('--num-classes', '4', '--img-size', '32', '--batch-size', '12', '--workers', '0', '--epochs', '3'),
        *('--opt', 'adamw', '--lr', '0.01', '--warmup-epochs', '0', *map(str, more)),
    ]


def rows(output):
    with open(output / 'run' / 'suites.csv', newline='') as file:
        return list(csv.DictReader(file))


def weights(output):
    return torch.load(output / 'run' / 'last.pth.tar', weights_only=False)


@pytest.mark.slow
def test_training_does_not_notice_and_a_resumed_run_has_the_same_rows(pictures, tmp_path):
    random = ('--mixup', '0.2', '--aa', 'rand-m9-mstd0.5', '--drop-path', '0.2', '--model-ema')
    suites = ('--eval-suites', f'again={pictures}', f'train={pictures}/train')
    more = (*suites, '--eval-suites-interval', 2, '--log-with', 'tensorboard', *random)
    train_dad.main(flags(pictures, tmp_path / 'without', *random))
    AcceleratorState._reset_state(reset_partial_state=True)
    results = train_dad.main(flags(pictures, tmp_path / 'with', *more))
    with_, without = weights(tmp_path / 'with'), weights(tmp_path / 'without')
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(value, without[key][name]) for name, value in with_[key].items())
    found = rows(tmp_path / 'with')
    assert [(row['epoch'], row['suite']) for row in found] == [
        *(('1', 'again'), ('1', 'train'), ('2', 'again'), ('2', 'train')),
    ]
    with open(tmp_path / 'with' / 'run' / 'summary.csv') as file:
        summary = list(csv.DictReader(file))
    for row in found:
        if row['suite'] == 'again':
            validated = summary[int(row['epoch'])]
            assert float(row['top1']) == pytest.approx(float(validated['eval_top1']), abs=1e-3)
            assert float(row['top5']) == pytest.approx(float(validated['eval_top5']), abs=1e-3)
    assert results['student']['train'] == pytest.approx(float(found[-1]['top1']), abs=1e-3)
    events = EventAccumulator(str(next((tmp_path / 'with' / 'run' / 'timm-dad').glob('**/events*')))).Reload()
    for figure in ('top1', 'top5'):
        logged = events.Scalars(f'suites/again/student_{figure}')
        assert [event.step for event in logged] == [1, 2]
        assert logged[-1].value == pytest.approx(float(found[2][figure]), abs=1e-3)
    report = json.loads((tmp_path / 'with' / 'run' / 'report.json').read_text())
    assert report['figures']['student']['train']['*']['top1']['value'] == pytest.approx(float(found[-1]['top1']))
    assert (tmp_path / 'with' / 'run' / 'report.md').is_file()
    # The same with an end in between, and rows of an epoch that is trained again.
    AcceleratorState._reset_state(reset_partial_state=True)
    train_dad.main(flags(pictures, tmp_path / 'with', *more, '--epochs', '4', '--resume', 'auto'))
    assert [row['epoch'] for row in rows(tmp_path / 'with')] == ['1', '1', '2', '2', '3', '3']
    path = tmp_path / 'with' / 'run' / 'suites.csv'
    before = path.read_bytes()
    path.write_bytes(before + b'4,student,again,0.0,0.0\r\n')
    AcceleratorState._reset_state(reset_partial_state=True)
    train_dad.main(flags(pictures, tmp_path / 'with', *more, '--epochs', '4', '--resume', 'auto'))
    assert path.read_bytes() == before


def test_the_last_epoch_is_evaluated_once(pictures, tmp_path, monkeypatch):
    called, evaluate = [], StudentSuites.evaluate
    monkeypatch.setattr(StudentSuites, 'evaluate', lambda *args: called.append(1) or evaluate(*args))
    suites = ('--eval-suites', f'again={pictures}', '--eval-suites-interval', 1, '--epochs', 2)
    train_dad.main(flags(pictures, tmp_path, *suites))
    assert len(called) == 2
    assert [row['epoch'] for row in rows(tmp_path)] == ['0', '1']


@pytest.mark.parametrize('interval', [1, 0])
def test_a_student_of_one_size_on_pictures_that_go_in_uncut(pictures, tmp_path, monkeypatch, interval):
    monkeypatch.setattr(train_dad, 'open_eval_suites', lambda texts: [uncut()])
    more = ('--eval-suites', 'imagenet-c=there', '--eval-suites-interval', interval, '--epochs', 2)
    train_dad.main(flags(pictures, tmp_path, *more, '--model', 'test_vit'))
    assert [row['epoch'] for row in rows(tmp_path)] == ['0', '1'][-1 - interval :]
    assert 'are resized for it' in (tmp_path / 'run' / 'report.md').read_text().replace('\n', ' ')


def test_a_student_of_imagenets_classes_is_masked_on_imagenet_a(tmp_path, monkeypatch):
    from importlib.resources import files

    wnids = (files('timm.data') / '_info' / 'imagenet_a_synsets.txt').read_text().split()
    rng = np.random.default_rng(0)
    for wnid in wnids:
        (tmp_path / 'a' / wnid).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / 'a' / wnid / '0.png')
    (suite,) = open_eval_suites([f'imagenet-a={tmp_path / "a"}'])
    index = match_suite(suite, 1000, None)
    assert [WNIDS[place] for place in index] == wnids
    student = timm.create_model('test_resnet', num_classes=1000).eval()
    outside = max(set(range(1000)) - set(index))
    with torch.no_grad():
        # All images are the first of the 200 classes, were it not for a class outside.
        student.get_classifier().weight.zero_()
        student.get_classifier().bias[[outside, index[0]]] = torch.tensor([9.0, 5.0])
    config = {**CONFIG, 'input_size': (3, 32, 32)}
    for opened, expected in ((suite, 0.5), (replace(suite, class_names=None), 0.0)):
        found = StudentSuites([opened], student, config, 1000, None).evaluate(student, None, EVALUATION, CPU)
        (part,) = found['student']['imagenet-a'].values()
        assert 100 * part.correct.mean() == expected
