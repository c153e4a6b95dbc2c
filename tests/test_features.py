"""Feature distillation on both views: what the teacher gives, the loss, the adapter and its checkpoints."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from clips import write_clip_folder
from folders import write_pictures
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import train_dad
from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.heads import LinearHead, create_head_teacher
from timm_dad.teachers.teacher import Teacher, create_open_clip_teacher

TARGET = torch.tensor([0, 1, 2, 3])
NORM = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
ATTACK = AttackConfig(eps=3.0, step_size=3.0, random_start=0.0)
WEIGHTS = DADLossConfig(kd_weight=0.3, dad_weight=0.7, feature_weight=2.0)
DAD = ('--dad', '--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--dad-look', '0')


@pytest.fixture
def input(x_pix):
    return (x_pix - 0.5) / 0.5


@pytest.fixture
def make_task(student, teacher, vqgan):
    teacher.with_features()

    def make(loss=WEIGHTS, *, pairs=False, attack_from='reconstruction', keep_label=False, **more):
        views = {'attack': ATTACK, 'attack_from': attack_from, 'keep_label': keep_label}
        augment = None if pairs else DADAugment(teacher, vqgan, **NORM, **views)
        return DADTask(student, teacher, augment, loss=loss, verbose=False, **more)

    return make


@pytest.fixture
def make_teacher(teacher, tmp_path):
    write_clip_folder(tmp_path / 'clip')
    spec = f'open_clip:local-dir:{tmp_path / "clip"}'

    def probe():
        return create_head_teacher(LinearHead(weight=torch.randn(5, 16), bias=torch.randn(5), tower=spec), spec, 5)

    def zero_shot():
        return create_open_clip_teacher(spec.removeprefix('open_clip:'), list('abcde'))

    def some_classes():
        model = timm.create_model('test_resnet', num_classes=9)
        return Teacher(model, **NORM, input_size=(24, 24), num_classes=5, class_index=[8, 0, 3, 2, 5])

    return {'timm': lambda: teacher, 'probe': probe, 'zero-shot': zero_shot, 'some classes': some_classes}.__getitem__


def expected_features(teacher, x_pix):
    model, x_norm = teacher.model, teacher.normalize(x_pix)
    if hasattr(model, 'visual'):
        return F.normalize(model.visual(x_norm), dim=-1)
    return model.forward_head(model.forward_features(x_norm), pre_logits=True)


@pytest.mark.parametrize('kind', ['timm', 'probe', 'zero-shot', 'some classes'])
def test_every_kind_of_teacher_gives_features_and_keeps_its_logits(make_teacher, x_pix, kind):
    teacher = make_teacher(kind)()
    assert teacher.answer(x_pix).features is None
    logits, features, name = teacher(x_pix), expected_features(teacher, x_pix), repr(teacher)
    fingerprint = teacher.fingerprint()
    assert teacher.with_features().with_features() is teacher
    answer = teacher.answer(x_pix)
    assert torch.equal(answer.logits, logits)
    assert torch.equal(teacher(x_pix), logits)
    torch.testing.assert_close(answer.features, features)
    assert teacher.feature_dim == features.shape[1]
    assert features.std(dim=0).mean() > 0
    assert (teacher.fingerprint(), repr(teacher)) == (fingerprint, name)  # it is the teacher of the sets of before


@pytest.mark.parametrize('kind', ['timm', 'probe', 'zero-shot'])
def test_features_are_of_the_teachers_own_precision(make_teacher, x_pix, kind):
    teacher = make_teacher(kind)().with_features()
    expected = teacher.answer(x_pix)
    prepare_frozen(teacher, precision='bf16')
    with torch.autocast('cpu', dtype=torch.float16):
        answer = teacher.answer(x_pix)
    assert answer.features.dtype == torch.float32
    assert not torch.equal(answer.features, expected.features)
    assert F.cosine_similarity(answer.features, expected.features).min() > 0.99


def test_what_has_no_features_says_so(teacher):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(
        ValueError, match=r'^the teacher must have forward_features and forward_head, .* Sequential does not'
    ):
        Teacher(linear, **NORM, input_size=(2, 2), num_classes=5).with_features()
    with pytest.raises(ValueError, match=r'^features need a single teacher'):
        TeacherEnsemble([copy.deepcopy(teacher), copy.deepcopy(teacher)]).with_features()
    maps = timm.create_model('test_resnet', num_classes=5)
    maps.forward_head = lambda x, pre_logits=False: x if pre_logits else x.mean((2, 3))[:, :5]
    with pytest.raises(ValueError, match=r'^pooled features of the teacher must be \[B, D\], got \[1, '):
        Teacher(maps, **NORM, input_size=(32, 32), num_classes=5).with_features()
    prepare_frozen(teacher)
    with pytest.raises(ValueError, match='call with_features first'):
        teacher.with_features()


def test_what_does_not_go_with_features_is_refused(student, teacher):
    def build(student, teacher, **more):
        return DADTask(student, teacher, None, loss=WEIGHTS, **NORM, **more)

    with pytest.raises(ValueError, match=r"^feature_weight needs the teacher's features: call its with_features"):
        build(student, teacher)
    with pytest.raises(ValueError, match=r'^stored answers are logits without features: feature_weight must be 0'):
        build(student, None, stored=object())
    teacher.with_features()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(ValueError, match=r'^the student must have forward_features and forward_head'):
        build(linear, teacher)
    linear.forward_features, linear.forward_head = linear.forward, None
    with pytest.raises(ValueError, match=r'^the student must have num_features'):
        build(linear, teacher)
    with pytest.raises(ValueError, match=r'^feature_weight is a factor of kd_weight and dad_weight: set one'):
        DADLossConfig(feature_weight=1, kd_weight=0, dad_weight=0)


def reference(task, student, teacher, x_norm, x_dad_norm):
    """1 - cos on both views, with the student's views in one batch; and the logits."""
    maps = student.forward_features(torch.cat([x_norm, x_dad_norm]))
    logits, features = student.forward_head(maps), student.forward_head(maps, pre_logits=True)
    adapter = task.trainable_module.projection
    projected = features @ adapter.weight.T + adapter.bias
    found = []
    for of_student, view in zip(projected.chunk(2), (x_norm, x_dad_norm), strict=True):
        of_teacher = teacher.answer(view / 2 + 0.5).features
        found.append(1 - (of_student * of_teacher).sum(1) / (of_student.norm(dim=1) * of_teacher.norm(dim=1)))
    return logits, *(one.mean() for one in found)


def test_the_loss_is_that_of_the_formula_on_both_views(make_task, student, teacher, input):
    task = make_task().train()
    task.dad_weight = 0.5
    x_dad = task.augment.make_views(input / 2 + 0.5, TARGET).x_dad
    logits, clean, dad = reference(task, copy.deepcopy(student), teacher, input, (x_dad - 0.5) / 0.5)
    result = task(input, TARGET)
    torch.testing.assert_close(result['output'], logits[:4])
    torch.testing.assert_close(result['kd_feature_loss'], clean)
    torch.testing.assert_close(result['dad_feature_loss'], dad, atol=1e-5, rtol=1e-4)
    assert (clean - dad).abs() > 1e-4
    views = 0.3 * (result['kd_loss'] + 2 * clean) + 0.5 * 0.7 * (result['dad_loss'] + 2 * dad)
    torch.testing.assert_close(result['loss'], result['task_loss'] + views)


@pytest.mark.parametrize(('attack_from', 'keep_label', 'asked'), [('reconstruction', True, 4), ('input', False, 3)])
def test_one_pass_gives_features_and_logits(make_task, student, teacher, input, attack_from, keep_label, asked):
    """The teacher: attack, DAD view (again where the label is lost), image, and that of an attack from x, too."""
    task, calls = make_task(attack_from=attack_from, keep_label=keep_label).eval(), []
    student.conv1.register_forward_hook(lambda *args: calls.append('student'))
    teacher.classifier.conv_stem.register_forward_hook(lambda *args: calls.append('teacher'))
    views = task.augment.make_views(input / 2 + 0.5, TARGET)
    assert not views.kept.all()
    torch.testing.assert_close(views.dad_features, teacher.answer(views.x_dad).features, atol=1e-5, rtol=1e-4)
    calls.clear()
    result = task(input, TARGET)
    assert (calls.count('student'), calls.count('teacher')) == (1, asked)
    torch.testing.assert_close(result['kd_feature_loss'], reference(task, student, teacher, input, input)[1])


def test_pairs_have_features_of_both_views(make_task, student, teacher, input):
    pairs = torch.cat([input, input.flip(3)])
    task = make_task(pairs=True).train()
    _, clean, extra = reference(task, copy.deepcopy(student), teacher, input, input.flip(3))
    result = task(pairs, TARGET.repeat(2))
    torch.testing.assert_close(result['kd_feature_loss'], clean)
    torch.testing.assert_close(result['dad_feature_loss'], extra)
    assert clean != extra


def test_splits_distil_the_clean_one(make_task, student, teacher, input):
    task = make_task(pairs=True, num_splits=2).eval()
    result = task(torch.cat([input, input.flip(2), input.flip(3)]), TARGET.repeat(3))
    _, clean, extra = reference(task, student.eval(), teacher, input, input.flip(3))
    torch.testing.assert_close(result['kd_feature_loss'], clean)
    torch.testing.assert_close(result['dad_feature_loss'], extra)


def test_a_batch_without_a_view_has_the_clean_features_and_one_seen_again_its_own(make_task, teacher, input):
    task = make_task(schedule=DADSchedule(every=2, replay=4)).train()
    first = task(input, TARGET)
    again = task._prepare(input.flip(3), TARGET)
    seen = teacher.answer((again.extra.x_norm * 0.5 + 0.5).clamp(0, 1)).features
    assert F.cosine_similarity(again.extra.features, seen).min() > 0.999  # pixels are kept as bytes
    assert F.cosine_similarity(again.extra.features, seen.roll(1, 0)).min() < 0.99
    assert first['dad_feature_loss'] > 0
    without = make_task(schedule=DADSchedule(every=2)).train()
    without.next_batch = 1
    result = without(input, TARGET)
    assert result['dad_feature_loss'] == 0 < result['kd_feature_loss']
    prepared = without._prepare(input, TARGET)  # the next batch has a view
    assert prepared.features is not None
    assert prepared.extra.features is not None


def train_step(task, optimizer, input):
    task.train()
    optimizer.zero_grad()
    result = task(input, TARGET)
    result['loss'].backward()
    optimizer.step()
    task.update_ema()
    return result


def saved(task, optimizer, folder):
    saver = CheckpointSaver(
        task.get_trainable_module(), optimizer, task=task, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(0, metric=1.0)
    return torch.load(folder / 'model_best.pth.tar', weights_only=True)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('wrapped', ['plain', pytest.param('compiled', marks=pytest.mark.slow), 'distributed'])
def test_the_adapter_is_trained_and_kept_beside_the_student(make_task, student, input, tmp_path, wrapped, request):
    task = make_task()
    task.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt='sgd', lr=0.5)
    expected, adapter = copy.deepcopy(task).train()(input, TARGET), task.trainable_module.projection
    before = adapter.weight.clone()
    if wrapped == 'compiled':
        assert task.compile(backend='eager') is task.get_eval_model()
    if wrapped == 'distributed':
        request.getfixturevalue('process_group')
        assert isinstance(task.prepare_distributed().trainable_module, DistributedDataParallel)
    result = train_step(task, optimizer, input)
    torch.testing.assert_close(result['loss'], expected['loss'], atol=1e-5, rtol=1e-4)
    assert not torch.equal(adapter.weight, before)
    assert task.get_eval_model()(input).shape == task.get_eval_model(ema=True)(input).shape == (4, 5)
    checkpoint = saved(task, optimizer, tmp_path)
    assert checkpoint['state_dict'].keys() == checkpoint['state_dict_ema'].keys() == student.state_dict().keys()
    torch.testing.assert_close(checkpoint['task_state']['projection']['weight'], adapter.weight)
    torch.testing.assert_close(checkpoint['task_state_ema']['projection']['weight'], (before + adapter.weight) / 2)
    loaded = timm.create_model('test_resnet', num_classes=5, checkpoint_path=str(tmp_path / 'model_best.pth.tar'))
    assert torch.equal(loaded.fc.weight, checkpoint['state_dict_ema']['fc.weight'])

    other = make_task()
    assert not torch.equal(other.trainable_module.projection.weight, adapter.weight)
    other.load_checkpoint_state(checkpoint['state_dict'], checkpoint['task_state'])
    assert torch.equal(other.trainable_module.projection.weight, adapter.weight)
    other.load_checkpoint_state(checkpoint['state_dict'])  # of a training without features
    make_task(DADLossConfig()).load_checkpoint_state(checkpoint['state_dict'], checkpoint['task_state'])


def test_clipping_spares_the_students_head_and_not_the_adapter(make_task, student):
    task = make_task()
    adapter = list(task.trainable_module.projection.parameters())
    assert [id(p) for p in task.get_clip_parameters()] == [id(p) for p in (*student.parameters(), *adapter)]
    spared = [id(p) for p in task.get_clip_parameters(exclude_head=True)]
    assert spared == [id(p) for p in (*list(student.parameters())[:-2], *adapter)]
    assert len(list(make_task(DADLossConfig()).get_clip_parameters())) == len(list(student.parameters()))


@pytest.mark.parametrize(
    ('name', 'pool'),
    [('test_vit', 'avg'), ('test_convnext', 'avg'), ('test_efficientnet', 'catavgmax'), ('test_resnet', 'catavgmax')],
)
def test_students_of_every_kind_fit_the_adapter(teacher, name, pool):
    teacher.with_features()
    student = timm.create_model(name, num_classes=5, global_pool=pool)
    task = DADTask(student, teacher, None, loss=WEIGHTS, **NORM, verbose=False).train()
    size = student.pretrained_cfg['input_size'][-1]
    result = task(torch.rand(4, 3, size, size) * 2 - 1, TARGET)
    result['loss'].backward()
    assert task.trainable_module.projection.weight.grad.abs().sum() > 0
    assert type(student).__name__ in repr(task)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures'), train=6, validation=3)


def flags(pictures, output, *more):
    return [
        *('--data-dir', str(pictures), '--output', str(output), '--experiment', 'run', '--model', 'test_resnet'),
        *('--num-classes', '4', '--img-size', '32', '--mean', '0.5', '0.5', '0.5', '--std', '0.5', '0.5', '0.5'),
        *('-b', '6', '--workers', '0', '--epochs', '2', '--opt', 'adamw', '--lr', '0.01', '--warmup-epochs', '0'),
        *(*DAD, '--dad-feature-weight', '1', *more),
    ]


@pytest.mark.slow
def test_a_training_with_features_goes_on_from_a_recovery_file_bit_by_bit(pictures, tmp_path, monkeypatch):
    more = ('--model-ema', '--model-ema-decay', '0.5', '--grad-accum-steps', '2', '--recovery-interval', '1')
    more += ('--torchcompile', 'eager', '--amp', '--amp-dtype', 'bfloat16', '--clip-grad', '1')
    train_dad.main(flags(pictures, tmp_path / 'whole', *more))
    update, calls = train_dad.update, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 4:  # the second of the second epoch
            raise KeyboardInterrupt
        update(*args)

    monkeypatch.setattr(train_dad, 'update', stop)
    with pytest.raises(KeyboardInterrupt):
        train_dad.main(flags(pictures, tmp_path / 'broken', *more))
    monkeypatch.undo()
    (recovery,) = (tmp_path / 'broken' / 'run').glob('recovery-*.pth.tar')
    assert set(torch.load(recovery, weights_only=False)['task_state']) == {'projection'}
    train_dad.main(flags(pictures, tmp_path / 'broken', *more, '--resume', 'auto'))
    whole, broken = (
        torch.load(tmp_path / name / 'run' / 'last.pth.tar', weights_only=False) for name in ('whole', 'broken')
    )
    for state in ('state_dict', 'state_dict_ema', 'task_state', 'task_state_ema'):
        left, right = (run[state].get('projection', run[state]) for run in (whole, broken))
        assert all(torch.equal(left[name], right[name]) for name in left)
    rows = (tmp_path / 'broken' / 'run' / 'summary.csv').read_text().splitlines()
    assert {'train_kd_feature_loss', 'train_dad_feature_loss'} <= set(rows[0].split(','))


@pytest.mark.slow
def test_views_of_a_cache_have_features(pictures, tmp_path):
    train_dad.main(flags(pictures, tmp_path, '--epochs', '1', '--dad-cache', '1'))
    header, row = (tmp_path / 'run' / 'summary.csv').read_text().splitlines()
    assert float(dict(zip(header.split(','), row.split(','), strict=True))['train_dad_feature_loss']) > 0
