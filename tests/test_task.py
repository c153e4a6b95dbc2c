import copy

import pytest
import timm
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, TrainingTask, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_dad.common.timm_version import NEW_TIMM
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import DADLossConfig
from timm_dad.method.schedule import DADSchedule
from timm_dad.method.task import DADTask

pytestmark = pytest.mark.timm

needs_new_timm = pytest.mark.skipif(not NEW_TIMM, reason='timm before 1.0.31 has no such thing')

TARGET = torch.tensor([0, 1, 2, 3])
OTHER_TARGET = torch.tensor([3, 2, 4, 0])
PARTS = {'loss', 'output', 'task_loss', 'kd_loss', 'dad_loss', 'teacher_kept'}
# No randomness: two tasks, and a reference, see the same DAD views.
ATTACK = AttackConfig(eps=3.0, step_size=3.0, random_start=0.0)


def to_pixels(x_norm):
    return x_norm / 2 + 0.5  # test_resnet, the student, is normalized with 0.5 and 0.5


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def input(x_pix):
    return (x_pix - 0.5) / 0.5


@pytest.fixture
def augment(teacher, vqgan):
    return DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), attack=ATTACK)


@pytest.fixture
def task(student, teacher, augment):
    return DADTask(student, teacher, augment, verbose=False)


@pytest.fixture
def optimizer(student):
    return torch.optim.SGD(student.parameters(), lr=0.1)


def train_step(task, optimizer, input, target=TARGET):
    task.train()
    result = task(input, target)
    optimizer.zero_grad()
    result['loss'].backward()
    optimizer.step()
    return result


def reference_kl(teacher, student, temperature):
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    return temperature**2 * (p * (p / q).log()).sum(dim=1).mean()


def reference_loss(student, teacher, clean, x_dad_norm, target, temperature=4.0):
    """The formula of the paper, with the student's two views in one batch (its batch statistics)."""
    s, s_dad = student(torch.cat([clean, x_dad_norm])).split(len(clean))
    t, t_dad = teacher(to_pixels(clean)), teacher(to_pixels(x_dad_norm))
    kd, dad = reference_kl(t, s, temperature), reference_kl(t_dad, s_dad, temperature)
    log_p = s.log_softmax(dim=1)
    task = -(target * log_p).sum(dim=1).mean() if target.ndim == 2 else -log_p[torch.arange(len(s)), target].mean()
    return {'loss': task + kd / 2 + dad / 2, 'output': s, 'task_loss': task, 'kd_loss': kd, 'dad_loss': dad}


@pytest.mark.parametrize('soft', [False, True])
def test_parts_are_those_of_the_formula(task, student, teacher, augment, input, soft):
    target = torch.rand(4, 5).softmax(dim=1) if soft else TARGET
    x_dad = augment.make_views(to_pixels(input), target).x_dad
    expected = reference_loss(copy.deepcopy(student).train(), teacher, input, (x_dad - 0.5) / 0.5, target)
    result = task.train()(input, target)
    assert set(result) == PARTS
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=1e-4)
        assert name == 'output' or result[name].shape == ()
    assert result['dad_loss'] > 1e-3
    assert isinstance(task, TrainingTask)


def test_gradients_are_those_of_the_formula(task, student, teacher, augment, input):
    x_dad = augment.make_views(to_pixels(input), TARGET).x_dad
    reference = copy.deepcopy(student).train()
    reference_loss(reference, teacher, input, (x_dad - 0.5) / 0.5, TARGET)['loss'].backward()
    task.train()(input, TARGET)['loss'].backward()
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_the_loss_settings_reach_the_loss(student, teacher, augment, input):
    def parts(**settings):
        task = DADTask(copy.deepcopy(student), teacher, augment, loss=DADLossConfig(**settings), verbose=False)
        return task.train()(input, TARGET)

    result = parts(task_weight=0.25, kd_weight=2.0, dad_weight=3.0)
    expected = 0.25 * result['task_loss'] + 2 * result['kd_loss'] + 3 * result['dad_loss']
    torch.testing.assert_close(result['loss'], expected)
    assert not torch.isclose(parts(temperature=1.0)['kd_loss'], parts(temperature=8.0)['kd_loss'])


def test_a_criterion_is_the_task_loss(student, teacher, augment, input):
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    result = DADTask(student, teacher, augment, criterion=criterion, verbose=False).train()(input, TARGET)
    torch.testing.assert_close(result['task_loss'], criterion(result['output'], TARGET))


def test_output_is_the_clean_view(task, student, input):
    task.eval()
    with torch.no_grad():
        result = task(input, TARGET)
        torch.testing.assert_close(result['output'], student(input))


def test_only_the_student_gets_gradients_and_changes(task, student, teacher, vqgan, optimizer, input):
    before = {module: snapshot(module) for module in (student, teacher, vqgan)}
    train_step(task, optimizer, input)
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert {id(p) for p in task.parameters() if p.requires_grad} == {id(p) for p in student.parameters()}
    for name, value in student.named_parameters():
        assert not torch.equal(value, before[student][name]), name
    for module in (teacher, vqgan):
        assert equal_states(before[module], module.state_dict())
        assert all(parameter.grad is None for parameter in module.parameters())


def test_teacher_and_vqgan_are_frozen_from_the_start_and_stay_in_evaluation_mode(student, teacher, vqgan, augment):
    teacher.requires_grad_(True)
    vqgan.train().requires_grad_(True)
    task = DADTask(student, teacher, augment, verbose=False)
    for mode in (True, False, True):
        assert task.train(mode) is task
        assert student.training is mode
        for module in (teacher, vqgan):
            assert not any(part.training for part in module.modules())
            assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_few_steps_lower_the_loss(task, student, input):
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = [train_step(task, optimizer, input)['loss'].item() for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def test_equal_seeds_are_bit_equal(student, teacher, vqgan, input):
    attack = AttackConfig(eps=3.0, step_size=1.0, random_start=0.8)
    augment = DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), attack=attack)

    def losses(seed):
        torch.manual_seed(seed)
        task = DADTask(copy.deepcopy(student), teacher, augment, verbose=False)
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
        return [train_step(task, optimizer, input)['loss'].item() for _ in range(2)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_without_an_augment_the_extra_view_is_distilled_as_it_is(student, teacher, input):
    first, second = input, input.flip(3)
    expected = reference_loss(copy.deepcopy(student).train(), teacher, first, second, TARGET)
    task = DADTask(student, teacher, None, verbose=False).train()
    result = task(torch.cat([first, second]), torch.cat([TARGET, OTHER_TARGET]))
    assert set(result) == PARTS
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=1e-4)
    kept = (teacher(to_pixels(second)).argmax(dim=1) == OTHER_TARGET).float().mean()
    assert result['teacher_kept'] == kept


def test_the_teacher_sees_both_views_of_pairs_in_one_batch(student, teacher, input, monkeypatch):
    seen, forward = [], type(teacher).forward
    monkeypatch.setattr(type(teacher), 'forward', lambda self, x: seen.append(x) or forward(self, x))
    pairs = torch.cat([input, input.flip(3)])
    DADTask(student, teacher, None, verbose=False)(pairs, TARGET.repeat(2))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], to_pixels(pairs))


def test_the_teacher_takes_pairs_in_pieces(student, teacher, input, monkeypatch):
    pairs, labels = torch.cat([input, input.flip(3)]), TARGET.repeat(2)
    expected = DADTask(copy.deepcopy(student), teacher, None, verbose=False)(pairs, labels)
    seen, forward = [], type(teacher).forward
    monkeypatch.setattr(type(teacher), 'forward', lambda self, x: seen.append(len(x)) or forward(self, x))
    result = DADTask(student, teacher, None, micro_batch=3, verbose=False)(pairs, labels)
    assert seen == [3, 3, 2]
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_the_teacher_takes_all_images_in_pieces_where_views_are_made(student, teacher, vqgan, input, monkeypatch, prob):
    seen, forward = [], type(teacher).forward
    monkeypatch.setattr(type(teacher), 'forward', lambda self, x: seen.append(len(x)) or forward(self, x))
    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    augment = DADAugment(teacher, vqgan, **norm, micro_batch=3)
    DADTask(student, teacher, augment, schedule=DADSchedule(prob=prob), **norm, verbose=False)(input, TARGET)
    assert set(seen) == {3, 1}


def test_without_a_extra_view_the_teacher_sees_the_clean_ones_alone(student, teacher, input, monkeypatch):
    seen, forward = [], type(teacher).forward
    monkeypatch.setattr(type(teacher), 'forward', lambda self, x: seen.append(x) or forward(self, x))
    task = DADTask(student, teacher, None, schedule=DADSchedule(prob=0.0), verbose=False)
    result = task(torch.cat([input, input.flip(3)]), TARGET.repeat(2))
    assert [len(x) for x in seen] == [4]
    assert result['dad_loss'] == result['teacher_kept'] == 0


def test_pairs_with_splits_distil_the_first_split_and_the_extra_view(student, teacher, input):
    splits, second = torch.cat([input, input.roll(2, 3), input.roll(3, 2)]), input.flip(3)
    reference = copy.deepcopy(student).train()
    logits = reference(torch.cat([splits, second]))
    task = DADTask(student, teacher, None, num_splits=3, verbose=False).train()
    result = task(torch.cat([splits, second]), TARGET.repeat(4))
    expected = {
        'output': logits[:12],
        'task_loss': nn.functional.cross_entropy(logits[:12], TARGET.repeat(3)),
        'kd_loss': reference_kl(teacher(to_pixels(input)), logits[:4], 4.0),
        'dad_loss': reference_kl(teacher(to_pixels(second)), logits[12:], 4.0),
        'teacher_kept': (teacher(to_pixels(second)).argmax(dim=1) == TARGET).float().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=1e-4)


class Stored:
    """Logits by row, of targets that are ``10 * row + label``."""

    def __init__(self, clean, second):
        self.clean, self.second = clean, second

    def labels(self, coded):
        return coded % 10

    def read(self, coded):
        clean, second = coded.chunk(2)  # targets of the images, and of their extra views
        return self.clean[clean // 10], self.second[second // 10]


def test_all_processes_make_views_for_the_same_batches(student, teacher, vqgan, input):
    """Else nearly every batch of 8 processes costs a DAD view, whatever its probability."""

    def fresh(seed, epoch, generator_seed):
        norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
        augment = DADAugment(teacher, vqgan, **norm)
        task = DADTask(
            student, teacher, augment, schedule=DADSchedule(prob=0.5), seed=seed, **norm, verbose=False
        )  # fmt: skip
        task.set_epoch(epoch)
        torch.manual_seed(generator_seed)  # as the rank does
        return [task._wants_fresh_view() for _ in range(64)]

    pattern = fresh(0, 0, generator_seed=1)
    assert pattern == fresh(0, 0, generator_seed=2)
    assert pattern != fresh(0, 1, generator_seed=1)
    assert pattern != fresh(1, 0, generator_seed=1)
    assert 16 < sum(pattern) < 48


@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_stored_logits_take_the_place_of_the_teacher(student, teacher, input, prob):
    second, order = input.flip(3), torch.tensor([2, 0, 3, 1])
    answers = [teacher(to_pixels(view)) for view in (input, second)]
    places = torch.empty(4, dtype=torch.int64).scatter_(0, order, torch.arange(4))  # row in the set of each image
    stored = Stored(*(logits[places.argsort()] for logits in answers))
    schedule, pairs = DADSchedule(prob=prob), torch.cat([input, second])
    expected = DADTask(copy.deepcopy(student), teacher, None, schedule=schedule, verbose=False).train()(
        pairs, TARGET.repeat(2)
    )
    task = DADTask(student, None, None, stored=stored, schedule=schedule, verbose=False).train()
    result = task(pairs, (10 * places + TARGET).repeat(2))
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=1e-4)
    assert {id(p) for p in task.parameters()} == {id(p) for p in student.parameters()}


def test_one_of_teacher_and_stored_logits_is_needed(student, teacher, augment):
    stored = Stored(torch.zeros(1, 5), torch.zeros(1, 5))
    for both in ({'teacher': None}, {'teacher': teacher, 'stored': stored}):
        with pytest.raises(ValueError, match='come from a teacher or are stored: pass either teacher or stored'):
            DADTask(student, augment=None, **both)
    with pytest.raises(ValueError, match='stored logits belong to views made earlier: pass no augment'):
        DADTask(student, None, augment, stored=stored)


def test_a_batch_that_holds_no_whole_views_is_refused(student, teacher, augment, input):
    with pytest.raises(ValueError, match='a batch of 2 views must be a multiple of that, got 3 images'):
        DADTask(student, teacher, None, verbose=False)(input[:3], TARGET[:3])
    with pytest.raises(ValueError, match='a batch of 4 views must be a multiple of that, got 6 images'):
        DADTask(student, teacher, None, num_splits=3, verbose=False)(torch.cat([input, input[:2]]), TARGET)
    with pytest.raises(ValueError, match='a batch of 3 views must be a multiple of that, got 4 images'):
        DADTask(student, teacher, augment, num_splits=3, verbose=False)(input, TARGET)


@pytest.mark.parametrize('hits', [0, 1, 3, 4])
def test_teacher_kept_is_the_fraction_of_labels_that_survive(student, teacher, vqgan, input, hits):
    # With a budget of 0 the DAD view is Q(Q(x)), so the teacher's labels on it are known beforehand.
    attack = AttackConfig(eps=0.0, step_size=0.0, random_start=0.0)
    augment = DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), attack=attack)
    labels = teacher(vqgan(vqgan(to_pixels(input)))).argmax(dim=1)
    target = torch.where(torch.arange(4) < hits, labels, (labels + 1) % 5)
    result = DADTask(student, teacher, augment, verbose=False)(input, target)
    assert result['teacher_kept'].shape == ()
    assert result['teacher_kept'].item() == hits / 4


def test_keep_label_reaches_the_loss(student, teacher, vqgan, input):
    def result(keep_label):
        norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
        augment = DADAugment(teacher, vqgan, attack=ATTACK, keep_label=keep_label, **norm)
        return DADTask(copy.deepcopy(student), teacher, augment, verbose=False).train()(input, TARGET)

    assert result(True)['teacher_kept'] == result(False)['teacher_kept'] < 1
    assert result(True)['dad_loss'] != result(False)['dad_loss']


@pytest.mark.parametrize('cfg', [None, {}, {'mean': (0.5, 0.5, 0.5)}])
def test_a_student_whose_config_lacks_the_normalization_is_refused(student, teacher, augment, cfg):
    student.pretrained_cfg = cfg
    with pytest.raises(ValueError, match='the student has no pretrained_cfg with mean and std: pass mean and std'):
        DADTask(student, teacher, augment)


def test_a_student_without_a_normalization_is_refused(teacher, augment, input):
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    match = 'the student has no pretrained_cfg with mean and std: pass mean and std'
    for kwargs in ({}, {'mean': (0.5, 0.5, 0.5)}, {'std': (0.5, 0.5, 0.5)}):
        with pytest.raises(ValueError, match=match):
            DADTask(student, teacher, augment, **kwargs)
    task = DADTask(student, teacher, augment, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), verbose=False)
    assert task(input, TARGET)['loss'].isfinite()


def test_a_normalization_that_is_given_goes_before_that_of_the_student(student, teacher, vqgan, augment, x_pix):
    mean, std = (0.2, 0.3, 0.4), (0.9, 0.8, 0.7)
    narrow = DADAugment(teacher, vqgan, mean=mean, std=std, attack=ATTACK)
    task = DADTask(student, teacher, narrow, mean=mean, std=std, verbose=False).eval()
    x_norm = (x_pix - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    result = task(x_norm, TARGET)
    torch.testing.assert_close(result['kd_loss'], reference_kl(teacher(x_pix), student(x_norm), 4.0))
    # The DAD view comes back to the student in the same normalization.
    x_dad = narrow.make_views(x_pix, TARGET).x_dad
    x_dad_norm = (x_dad - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(result['dad_loss'], reference_kl(teacher(x_dad), student(x_dad_norm), 4.0))


def test_an_autocast_around_the_task_is_the_students_alone(task, student, teacher, vqgan, augment, input):
    views = augment.make_views(to_pixels(input), TARGET)
    dtypes = {name: set() for name in ('student', 'teacher', 'vqgan')}
    for name, module in (('student', student), ('teacher', teacher), ('vqgan', vqgan)):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _layer, _args, out, name=name: dtypes[name].add(out.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = task(input, TARGET)
    assert dtypes == {'student': {torch.bfloat16}, 'teacher': {torch.float32}, 'vqgan': {torch.float32}}
    assert result['teacher_kept'] == views.kept.float().mean()
    assert result['loss'].isfinite()


def save_checkpoint(task, optimizer, folder):
    saver = CheckpointSaver(
        task.get_trainable_module(), optimizer, task=task, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(0, metric=1.0)
    return folder / 'model_best.pth.tar'


def test_a_checkpoint_holds_the_student_and_nothing_else(task, student, optimizer, input, tmp_path):
    train_step(task, optimizer, input)
    path = save_checkpoint(task, optimizer, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['state_dict'].keys() == student.state_dict().keys()
    assert 'task_state' not in checkpoint
    assert 'state_dict_ema' not in checkpoint
    loaded = timm.create_model('test_resnet', num_classes=5, checkpoint_path=str(path))
    assert equal_states(loaded.state_dict(), student.state_dict())


def test_a_checkpoint_comes_back_into_a_task(task, student, teacher, augment, optimizer, input, tmp_path):
    train_step(task, optimizer, input)
    checkpoint = torch.load(save_checkpoint(task, optimizer, tmp_path), weights_only=True)
    other = DADTask(timm.create_model('test_resnet', num_classes=5), teacher, augment, verbose=False)
    other.load_checkpoint_state(checkpoint['state_dict'])
    assert equal_states(other.trainable_module.state_dict(), student.state_dict())


def test_the_state_is_that_of_the_student(task, student, teacher, augment, input):
    names = {f'trainable_module.{name}' for name in student.state_dict()}
    assert set(task.state_dict()) == names
    assert set(nn.ModuleDict({'task': task}).state_dict()) == {f'task.{name}' for name in names}
    task.setup_ema(decay=0.5)
    assert {name.split('.')[0] for name in task.state_dict()} == {'trainable_module', 'trainable_module_ema'}


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('inside', [False, True])
def test_a_state_is_loaded_with_or_without_frozen_networks(task, student, teacher, vqgan, augment, input, old, inside):
    saved = {name: value + 1 for name, value in task.state_dict().items()}
    before = [snapshot(frozen) for frozen in (teacher, vqgan)]
    if old:  # as files hold it that were written before
        saved.update({f'teacher.{name}': value + 1 for name, value in teacher.state_dict().items()})
        saved.update({'teacher.of_another_architecture': torch.ones(1), 'vqgan.encoder.conv_in.bias': torch.ones(1)})
    if inside:  # as Lightning saves it
        nn.ModuleDict({'task': task}).load_state_dict({f'task.{name}': value for name, value in saved.items()})
    else:
        copy.deepcopy(task).load_state_dict(saved)
        task.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in task.state_dict().items())
    assert all(equal_states(*pair) for pair in zip(before, (snapshot(teacher), snapshot(vqgan)), strict=True))
    missing = next(iter(saved))
    del saved[missing]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{missing}"\.'):
        task.load_state_dict({**saved})


def test_parts_of_another_kind_are_refused(student, teacher, augment):
    for wrong in ({'teacher': teacher.model}, {'augment': 1}, {'loss': 1}, {'schedule': augment.attack}):
        ((name, part),) = wrong.items()
        rule = f'{name} must be a timm_dad.* got {type(part).__name__}'
        with pytest.raises(TypeError, match=rule):
            DADTask(student, **{'teacher': teacher, 'augment': augment, **wrong}, verbose=False)


@pytest.mark.parametrize('with_augment', [True, False])
def test_batches_that_are_no_normalized_images_are_refused(student, teacher, augment, input, with_augment):
    task = DADTask(student, teacher, augment if with_augment else None, verbose=False)
    target = TARGET if with_augment else TARGET[:2].repeat(2)
    with pytest.raises(ValueError, match=r'floating-point, got torch\.uint8: divide pixels by 255'):
        task((to_pixels(input) * 255).byte(), target)
    with pytest.raises(ValueError, match='images must be normalized'):
        task(to_pixels(input) * 255, target)
    task(input, target)


def test_a_task_says_what_is_in_it(task, student, teacher):
    sizes = 'student=ResNet(451,693 parameters)'.replace('451,693', f'{sum(p.numel() for p in student.parameters()):,}')
    for part in (sizes, 'augment=DADAugment(', 'AttackConfig(eps=3.0', 'DADLossConfig(', 'DADSchedule('):
        assert part in repr(task)
    assert 'None, teacher=Teacher(EfficientNet, 24 x 24, 5 classes)' in repr(DADTask(student, teacher, None))


def test_ema_averages_the_student_alone(task, student, optimizer, input, tmp_path):
    task.setup_ema(decay=0.75)
    before = snapshot(student)
    train_step(task, optimizer, input)
    task.update_ema()
    ema = task.get_trainable_module(ema=True).module
    assert ema.state_dict().keys() == student.state_dict().keys()
    for name, value in student.named_parameters():
        torch.testing.assert_close(ema.state_dict()[name], 0.75 * before[name] + 0.25 * value)
    path = save_checkpoint(task, optimizer, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['state_dict_ema'].keys() == student.state_dict().keys()
    loaded = timm.create_model('test_resnet', num_classes=5, checkpoint_path=str(path))
    assert equal_states(loaded.state_dict(), ema.state_dict())  # timm prefers the average


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures('process_group')
def test_only_the_student_is_wrapped_for_distributed_training(
    task, student, teacher, vqgan, optimizer, input, tmp_path
):
    task.setup_ema(decay=0.5)
    expected = copy.deepcopy(task).train()(input, TARGET)
    assert task.prepare_distributed() is task
    assert isinstance(task.trainable_module, DistributedDataParallel)
    assert [module for module in task.modules() if isinstance(module, DistributedDataParallel)] == [
        task.trainable_module
    ]
    assert task.trainable_module.module is student
    before = {module: snapshot(module) for module in (student, teacher, vqgan)}
    result = train_step(task, optimizer, input)
    task.update_ema()
    torch.testing.assert_close(result['loss'], expected['loss'])
    assert not equal_states(before[student], student.state_dict())
    assert equal_states(before[teacher], teacher.state_dict())
    assert equal_states(before[vqgan], vqgan.state_dict())
    path = save_checkpoint(task, optimizer, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['state_dict'].keys() == student.state_dict().keys()  # no "module." before the names


def test_a_compiled_student_trains_and_saves_under_its_own_names(task, student, optimizer, input, tmp_path):
    expected = copy.deepcopy(task).train()(input, TARGET)
    # The backend that changes nothing: no compiler is needed.
    compiled = task.compile(backend='eager')
    assert task.get_eval_model() is compiled
    result = train_step(task, optimizer, input)
    torch.testing.assert_close(result['loss'], expected['loss'], atol=1e-5, rtol=1e-4)
    checkpoint = torch.load(save_checkpoint(task, optimizer, tmp_path), weights_only=True)
    assert checkpoint['state_dict'].keys() == student.state_dict().keys()
    assert equal_states(checkpoint['state_dict'], student.state_dict())


@pytest.mark.usefixtures('process_group')
def test_validation_of_a_compiled_student_goes_around_the_distributed_wrapper(
    task, student, optimizer, input, tmp_path
):
    compiled = task.compile(backend='eager')
    task.prepare_distributed()
    assert task.get_eval_model() is compiled
    train_step(task, optimizer, input)
    checkpoint = torch.load(save_checkpoint(task, optimizer, tmp_path), weights_only=True)
    assert equal_states(checkpoint['state_dict'], student.state_dict())


# What timm's own tests ask of its tasks (tests/test_task.py of its source distribution), asked of this one.


@needs_new_timm
def test_criterion_kwargs_are_those_of_timms_tasks(student, teacher, augment, input):
    kwargs = {'loss_type': 'poly', 'smoothing': 0.1}
    task = DADTask(student, teacher, augment, criterion_kwargs=kwargs, verbose=False)
    theirs = ClassificationTask(student, criterion_kwargs=kwargs, verbose=False)
    assert type(task.loss.criterion) is type(theirs.criterion)
    result = task.train()(input, TARGET)
    torch.testing.assert_close(result['task_loss'], theirs.criterion(result['output'], TARGET))
    with pytest.raises(ValueError, match='pass criterion or criterion_kwargs, not both'):
        DADTask(student, teacher, augment, criterion=nn.CrossEntropyLoss(), criterion_kwargs=kwargs)
    with pytest.raises(ValueError, match='Unknown loss type'):
        DADTask(student, teacher, augment, criterion_kwargs={'loss_type': 'none'})


def test_criterion_kwargs_need_a_timm_that_has_them(student, teacher, augment, monkeypatch):
    monkeypatch.setattr('timm_dad.method.loss.NEW_TIMM', False)
    assert isinstance(DADTask(student, teacher, augment, criterion_kwargs={}).loss.criterion, nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match=r'criterion_kwargs needs timm 1\.0\.31 or newer, .* is installed'):
        DADTask(student, teacher, augment, criterion_kwargs={'loss_type': 'ce'})


@needs_new_timm  # before, timm took the default where a move names no dtype
def test_device_and_dtype_follow_the_parameters(task):
    task.to(dtype=torch.float64)
    for how in (('cpu',), ()):
        assert task.to(*how) is task
        assert task.dtype == next(task.parameters()).dtype == torch.float64
    with pytest.raises(TypeError):
        task.to(torch.int64)
    assert task.dtype == torch.float64
    task.to('meta').to(torch.float32)
    assert task.device == next(task.parameters()).device == torch.device('meta')
    assert task.dtype == next(task.parameters()).dtype == torch.float32


@needs_new_timm
def test_device_and_dtype_follow_conversions_by_other_names_and_of_a_parent(task):
    task.half()
    assert task.dtype == next(task.parameters()).dtype == torch.float16
    nn.Sequential(task).double()
    assert task.dtype == next(task.parameters()).dtype == torch.float64


def test_the_mode_is_that_of_student_and_criterion_alone(task, student, teacher, vqgan, input):
    buffers = [{name: value.clone() for name, value in frozen.named_buffers()} for frozen in (teacher, vqgan)]
    for mode in (True, False, True):
        assert (task.train() if mode else task.eval()) is task
        assert all(module.training is mode for module in (task, task.loss.criterion, *student.modules()))
        assert not any(module.training for frozen in (teacher, vqgan) for module in frozen.modules())
        task(input, TARGET)['loss'].backward()
        assert all(parameter.grad is None for frozen in (teacher, vqgan) for parameter in frozen.parameters())
    for frozen, before in zip((teacher, vqgan), buffers, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in frozen.named_buffers())


def test_an_optimizer_gets_the_student_with_its_decay(task, student):
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt='sgd', lr=0.1, weight_decay=0.2)
    decays = {id(each): group['weight_decay'] for group in optimizer.param_groups for each in group['params']}
    assert decays.keys() == {id(parameter) for parameter in student.parameters()}
    assert all(decays[id(each)] == (0.2 if each.ndim > 1 else 0.0) for each in student.parameters())


def test_a_wrapped_student_is_what_is_evaluated_and_clipped(task, student):
    wrapper = nn.Sequential(student)
    task.trainable_module = wrapper
    assert task.get_eval_model() is wrapper
    assert set(task.get_clip_parameters()) == set(student.parameters())


def test_a_compiled_average_follows_its_updates(task, input):
    task.setup_ema(decay=0.0)
    task.compile(backend='eager')
    task.compile_ema(backend='eager')
    task.eval()
    before = task.get_eval_model(ema=True)(input).detach()
    with torch.no_grad():
        for parameter in task.get_trainable_module().parameters():
            parameter.add_(0.25)
    task.update_ema(step=2)
    after = task.get_eval_model(ema=True).eval()(input).detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, task.get_eval_model()(input).detach())


def test_a_compiled_task_loads_the_state_of_one_that_is_not(task, student, teacher, augment):
    state = {name: value.clone() for name, value in task.get_checkpoint_state()['state_dict'].items()}
    other = DADTask(timm.create_model('test_resnet', num_classes=5), teacher, augment, verbose=False)
    other.compile(backend='eager')
    other.load_checkpoint_state(state)
    assert equal_states(student.state_dict(), other.get_eval_model()._orig_mod.state_dict())


def test_checkpoints_of_before_are_resumed(task, student, tmp_path):
    path = tmp_path / 'old.pth.tar'
    torch.save(
        {'model': {name: value + 1 for name, value in student.state_dict().items()}, 'epoch': 5, 'version': 2}, path
    )
    expected = {name: value + 1 for name, value in snapshot(student).items()}
    assert resume_task_checkpoint(task, path, log_info=False) == 6
    assert equal_states(student.state_dict(), expected)


@needs_new_timm
def test_the_evaluator_is_that_of_one_label_an_image(task, input):
    evaluator = task.create_evaluator(max_samples=3)
    output = task.eval().get_eval_model()(input)
    evaluator.update(output, TARGET)
    right = (output.argmax(dim=1) == TARGET)[:3].float().mean()
    assert evaluator.compute()['top1'] == pytest.approx(100 * right.item())
    assert evaluator.metric_names == ('loss', 'top1', 'top5')


@pytest.mark.parametrize(('attack_from', 'forwards'), [('reconstruction', 3), ('input', 2)])
def test_the_teacher_sees_no_image_twice(student, teacher, vqgan, input, attack_from, forwards):
    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    task = DADTask(student, teacher, DADAugment(teacher, vqgan, **norm, attack_from=attack_from), verbose=False)
    seen = []
    teacher.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    result = task(input, TARGET)
    assert len(seen) == forwards  # reconstruction: x, Q(x) with gradient, x_dad; input: x with gradient, x_dad
    assert not any(torch.equal(a, b) for index, a in enumerate(seen) for b in seen[:index])
    expected = reference_kl(teacher(to_pixels(input)), result['output'], task.loss.config.temperature)
    torch.testing.assert_close(result['kd_loss'], expected, atol=1e-4, rtol=1e-4)
