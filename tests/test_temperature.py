"""``--dad-temperature auto``: the number, where it is kept, and who takes it."""

import argparse
import math

import pytest
import timm
import torch
import yaml
from folders import CLASSES, write_pictures
from safetensors.torch import save_file
from test_train_dad import flags
from timm.data import create_dataset
from torch import nn

import train_dad
from timm_dad.commands import generate, preview
from timm_dad.commands.set_commands import generate_command
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.reinforce import Reinforcement
from timm_dad.data.images import Frame, Source
from timm_dad.demo.data import DemoDataset
from timm_dad.diagnosis import command as diagnose
from timm_dad.flags import dad, temperature
from timm_dad.flags.dad import add_dad_args, build_task, loss_config
from timm_dad.flags.temperature import images_to_fit, keep_temperature, take_set_temperature, with_number
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.teacher import Teacher
from timm_dad.teachers.temperature import TARGET, fit_temperature, match_entropy
from timm_dad.timm_train import create_task

AUTO = ('--dad-temperature', 'auto')


def softness(logits, temperature):
    p = (logits.double() / temperature).softmax(dim=1)
    return (-(p * p.log()).sum(dim=1).mean() / math.log(logits.shape[1])).item()


# The number.


@pytest.mark.parametrize('target', [0.3, 0.5, TARGET, 0.97])
@pytest.mark.parametrize('num_classes', [2, 7, 1000])
def test_the_mean_entropy_is_the_part_of_log_k_that_is_wanted(target, num_classes):
    logits = 3 * torch.randn(200, num_classes, generator=torch.Generator().manual_seed(0))
    found = match_entropy(logits, target)
    assert softness(logits, found) == pytest.approx(target, abs=5e-3)
    assert found == float(f'{found:.3g}')


@pytest.mark.parametrize('scale', [0.01, 1.7, 117.3])
def test_the_temperature_follows_the_scale_of_the_logits_and_no_bias(scale):
    """A sigmoid model's logits are CLIP's on another scale, with a bias that is the same for all classes."""
    cosines = torch.randn(100, 20)
    base = match_entropy(cosines)
    assert match_entropy(scale * cosines - 16.5) == pytest.approx(scale * base, rel=1e-2)


def test_a_softer_answer_needs_a_higher_temperature():
    logits = 5 * torch.randn(50, 10)
    found = [match_entropy(logits, target) for target in (0.2, 0.4, 0.6, 0.8, 0.95)]
    assert found == sorted(found)
    assert len(set(found)) == 5


@pytest.mark.parametrize('target', [0.0, 1.0, -1.0, 90.0, float('nan')])
def test_a_target_out_of_range_is_refused(target):
    with pytest.raises(
        ValueError, match='target is a fraction of the entropy of a uniform answer, above 0 and below 1'
    ):
        match_entropy(torch.randn(4, 5), target)


def test_equal_logits_have_no_such_temperature():
    with pytest.raises(ValueError, match=r'no temperature .* answers on 4 images 0.9 of .* have 1.00 of it'):
        match_entropy(torch.ones(4, 5))


def small_teacher(seed=0, scale=5.0, classes=4):
    torch.manual_seed(seed)
    model = timm.create_model('test_resnet', num_classes=classes, zero_init_last=False)
    nn.init.normal_(model.get_classifier().weight, std=scale)
    norm = {'mean': (0.5,) * 3, 'std': (0.3,) * 3, 'input_size': (32, 32)}
    return Teacher(model, **norm, num_classes=classes)


def test_it_is_that_of_the_teachers_own_logits_however_they_are_batched():
    teacher, x_pix = small_teacher(), torch.rand(10, 3, 32, 32)
    found = fit_temperature(teacher, x_pix.split(3))
    assert found == fit_temperature(teacher, [x_pix]) == match_entropy(teacher(x_pix))
    assert softness(teacher(x_pix), found) == pytest.approx(TARGET, abs=5e-3)


# Several teachers.


def test_each_of_several_teachers_is_softened_at_its_own_temperature(x_pix):
    teachers = [small_teacher(1), small_teacher(2, scale=50.0)]
    ensemble = TeacherEnsemble(teachers, [1, 3], 4.0, [2.0, 20.0])
    p = 0.25 * (teachers[0](x_pix) / 2).softmax(1) + 0.75 * (teachers[1](x_pix) / 20).softmax(1)
    torch.testing.assert_close((ensemble(x_pix) / 4).softmax(1), p)
    plain = TeacherEnsemble(teachers, [1, 3], 4.0)
    alike = TeacherEnsemble(teachers, [1, 3], 4.0, [4.0, 4.0])
    assert torch.equal(plain(x_pix), alike(x_pix))
    assert plain.fingerprint() == alike.fingerprint() != ensemble.fingerprint()
    assert 'temperatures=[2.0, 20.0]' in repr(ensemble)
    assert 'temperatures' not in repr(plain)


@pytest.mark.parametrize('temperatures', [[1.0], [1.0, 0.0], [1.0, float('inf')], [float('nan'), 1.0]])
def test_bad_temperatures_of_several_are_refused(temperatures):
    teachers = [small_teacher(1), small_teacher(2)]
    with pytest.raises(ValueError, match='temperatures must be 2 positive numbers, one per teacher, got'):
        TeacherEnsemble(teachers, None, 4.0, temperatures)


# Flags.


def parse(*more):
    parser = argparse.ArgumentParser()
    add_dad_args(parser)
    return parser.parse_args(['--dad', '--dad-teacher', 'demo', *more])


def test_checks_go_by_the_default_while_the_number_is_not_known():
    args = parse(*AUTO)
    assert args.dad_temperature == 'auto'
    assert loss_config(args).temperature == 4.0
    assert args.dad_temperature == 'auto'
    args = parse('--dad-temperature', '2.5')
    assert with_number(args) is args
    assert loss_config(args).temperature == 2.5


def test_another_word_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse('--dad-temperature', 'best')
    assert "--dad-temperature: must be a number or auto, got 'best'" in capsys.readouterr().err


def test_a_thousand_images_are_drawn_whatever_the_seed_and_nothing_is_left_changed():
    dataset = DemoDataset('noto', 'train')
    dataset.transform = own = object()
    args, frame = parse(*AUTO), Frame(size=(32, 32))
    images = images_to_fit(args, Source(dataset), lambda _: frame)
    teacher = small_teacher()
    one, other = (torch.cat(list(images(teacher))) for _ in range(2))
    assert torch.equal(one, other)
    assert len(one) == min(len(dataset), temperature.NUM_IMAGES) == 821
    assert dataset.transform is own
    assert images_to_fit(parse(), Source(dataset), lambda _: frame) is None


def test_of_more_images_a_thousand_are_drawn(monkeypatch):
    monkeypatch.setattr(temperature, 'NUM_IMAGES', 40)
    images = images_to_fit(parse(*AUTO), Source(DemoDataset('noto', 'train')), lambda _: Frame(size=(32, 32)))
    batches = list(images(small_teacher()))
    assert [len(batch) for batch in batches] == [32, 8]


def test_a_run_that_goes_on_keeps_its_number_and_no_other_does():
    before = {**vars(parse(*AUTO)), 'dad_temperature': 3.21, 'dad_teacher_temperatures': [3.0, 3.4]}
    for flags_before, given, expected in (
        (before, AUTO, (3.21, [3.0, 3.4])),
        (before, ('--dad-temperature', '2'), (2.0, None)),
        ({}, AUTO, ('auto', None)),
        ({**before, 'dad': False}, AUTO, ('auto', None)),
        ({**before, 'dad_teacher': ['timm:another']}, AUTO, ('auto', None)),
        ({**before, 'dad_teacher_weights': [1.0, 2.0]}, AUTO, ('auto', None)),
        *(
            ({**before, name: 'another'}, AUTO, ('auto', None))
            for name in ('dad_teacher_img_size', 'dad_templates', 'dad_classnames', 'dad_class_map')
        ),
    ):
        args = parse(*given)
        keep_temperature(args, flags_before)
        assert (args.dad_temperature, args.dad_teacher_temperatures) == expected


def test_other_temperatures_than_those_of_a_set_are_refused():
    settings = {'teacher': {'temperature': 2.0, 'flags': {'dad_teacher_temperatures': [1.0, 2.0]}}}
    args = parse(*AUTO)
    args.dad_teacher_temperatures = [3.0, 4.0]
    with pytest.raises(ValueError, match=r'--dad-teacher-temperatures 3.0 4.0: a set has \[1.0, 2.0\]; leave it out'):
        take_set_temperature(args, settings, 'a set')
    args.dad_teacher_temperatures = None
    take_set_temperature(args, settings, 'a set')
    assert (args.dad_temperature, args.dad_teacher_temperatures) == (2.0, [1.0, 2.0])


# Commands.


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Pictures of four classes, and two teachers of them."""
    root = tmp_path_factory.mktemp('temperature')
    write_pictures(root / 'data', train=5, validation=3)
    for seed in (1, 2):
        save_file(small_teacher(seed, 5.0 * seed).model.state_dict(), root / f'teacher{seed}.safetensors')
    return root


def specs(files, *seeds):
    return [f'timm:test_resnet/{files}/teacher{seed}.safetensors' for seed in seeds]


def models(files, *seeds):
    return ['--dad-teacher', *specs(files, *seeds), '--dad-vqgan', 'demo']


def expected(files, seed, frame, split='train'):
    """The number by another way: all pictures of the folder, in any order."""
    parser = argparse.ArgumentParser()
    add_dad_args(parser)
    args = parser.parse_args(['--dad', '--dad-teacher', *specs(files, seed)])
    args.num_classes = 4
    teacher = temperature_teacher(args)
    source = Source(create_dataset('', str(files / 'data'), split=split))
    pictures = [frame.transform()(source.read(index).image) for index in range(len(source))]
    pixels = [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in pictures]
    x_pix = torch.stack([one.view(*frame.size, 3).permute(2, 0, 1) / 255 for one in pixels])
    with torch.no_grad():
        return match_entropy(teacher(x_pix))


def temperature_teacher(args):
    from timm_dad.flags.teacher import create_teacher

    return create_teacher(args, 4, list(CLASSES))


def no_fit(*args, **kwargs):
    raise AssertionError('it was found anew')


def test_train_finds_says_and_keeps_it_and_a_resumed_run_does_not_ask_again(files, tmp_path, caplog, monkeypatch):
    caplog.set_level('INFO', logger='timm_dad')
    framed = ('--crop-pct', '1', '--interpolation', 'bicubic')
    more = ('--dad', *models(files, 1), *AUTO, '--dad-look', '0', *framed)
    train_dad.main(flags(files / 'data', tmp_path, *more, '--epochs', '1'))
    number = expected(files, 1, Frame(size=(32, 32)))
    assert f'--dad-temperature auto: {number:g}, where the answers of timm:test_resnet/' in caplog.text
    assert yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())['dad_temperature'] == number
    saved = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)
    assert saved['args'].dad_temperature == number
    monkeypatch.setattr(temperature, 'fit_temperature', no_fit)
    caplog.clear()
    train_dad.main(flags(files / 'data', tmp_path, *more, '--epochs', '2', '--resume', 'auto'))
    assert f'--dad-temperature auto: {number:g}, from the resumed run' in caplog.text
    assert yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())['dad_temperature'] == number


CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bicubic', 'crop_pct': 1}


def task_of(files, *more):
    args = train_dad.parse_args(flags(files / 'data', files / 'out', '--dad', *more))
    student = timm.create_model('test_resnet', num_classes=4)
    dataset = create_dataset('', str(files / 'data'), split='train')
    task, _ = build_task(args, student, CONFIG, CLASSES, dataset=dataset, device=torch.device('cpu'), verbose=False)
    return args, task


def test_of_several_teachers_each_gets_its_own(files, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    weights = ('--dad-teacher-weights', '1', '3', '--dad-view', 'random')
    args, task = task_of(files, *models(files, 1, 2)[:3], *AUTO, *weights)
    frame = Frame(size=(32, 32))
    each = [expected(files, seed, frame) for seed in (1, 2)]
    assert each[1] > 1.3 * each[0]
    mean = float(f'{0.25 * each[0] + 0.75 * each[1]:.3g}')
    assert (args.dad_teacher_temperatures, args.dad_temperature) == (each, mean)
    assert task.teacher.temperatures == each
    assert task.loss.config.temperature == task.teacher.temperature == mean
    assert caplog.text.count('--dad-temperature auto: ') == 2


def test_temperatures_of_several_may_be_given(files):
    _, task = task_of(files, *models(files, 1, 2)[:3], '--dad-view', 'random', '--dad-teacher-temperatures', '2', '9')
    assert (task.teacher.temperatures, task.teacher.temperature) == ([2.0, 9.0], 4.0)


def test_without_data_to_look_at_it_is_the_default(files):
    """As ``timm-dad info`` builds a task."""
    args = train_dad.parse_args(flags(files / 'data', files / 'out', '--dad', *models(files, 1), *AUTO))
    assert dad._images_to_fit(args, None, {}) is None
    assert args.dad_temperature == 4.0


def test_timms_own_script_finds_it_and_keeps_it_when_it_goes_on(files, tmp_path, monkeypatch):
    args = train_dad.parse_args(
        flags(files / 'data', tmp_path, '--dad', *models(files, 1)[:2], '--dad-view', 'random', *AUTO)
    )
    dataset = create_dataset('', str(files / 'data'), split='train')

    def create(args):
        student = timm.create_model('test_resnet', num_classes=4)
        return create_task(args, student, nn.CrossEntropyLoss(), dataset, CONFIG, torch.device('cpu'))

    number = expected(files, 1, Frame(size=(32, 32)))
    assert create(args).loss.config.temperature == args.dad_temperature == number
    args.dad_temperature = 7.5  # as another machine might have found
    torch.save({'args': args, 'state_dict': {}}, tmp_path / 'last.pth.tar')
    monkeypatch.setattr(temperature, 'fit_temperature', no_fit)
    resumed = argparse.Namespace(**{**vars(args), 'dad_temperature': 'auto', 'resume': str(tmp_path / 'last.pth.tar')})
    assert create(resumed).loss.config.temperature == 7.5


def make_set(files, output, *more):
    sized = ('--img-size', '32', '--batch-size', '8', '--workers', '0', '--device', 'cpu', '--dad-attack', 'pixels')
    return generate.main(['--data-dir', str(files / 'data'), '--output', str(output), *sized, *map(str, more)])


def from_set(files, root, *more):
    sized = ('--data-dir', str(files / 'data'), '--num-classes', '4', '--img-size', '32', '--device', 'cpu')
    args = train_dad.parse_args(
        [*sized, '--dad', '--dad-dir', str(root), '--no-aug', '--mean', '0.5', '0.5', '0.5', *more]
    )
    return args


def test_a_set_keeps_it_and_whoever_goes_on_or_trains_takes_it(files, tmp_path, caplog, monkeypatch):
    caplog.set_level('INFO', logger='timm_dad')
    make_set(files, tmp_path / 'set', *models(files, 1), '--dad-store-logits', 2, *AUTO)
    number = expected(files, 1, Frame(size=(32, 32)))
    dad_set = DADSet(tmp_path / 'set')
    assert dad_set.settings['logits'] == {'top_k': 2, 'temperature': number}
    assert set(dad_set.settings['teacher']) == {'fingerprint', 'flags'}
    assert 'dad_teacher_temperatures' not in dad_set.settings['teacher']['flags']
    assert f'--dad-temperature {number:g}' in generate_command(dad_set, 'OUT')
    monkeypatch.setattr(temperature, 'fit_temperature', no_fit)
    make_set(files, tmp_path / 'set', *models(files, 1), '--dad-store-logits', 2, *AUTO)
    assert from_set(files, tmp_path / 'set', '--dad-stored-logits', *AUTO).dad_temperature == number
    assert from_set(files, tmp_path / 'set', *AUTO).dad_temperature == number
    assert f'--dad-temperature auto: {number:g}, from {tmp_path}/set' in caplog.text


def test_a_set_of_several_teachers_keeps_all_of_them(files, tmp_path, monkeypatch):
    make_set(files, tmp_path / 'set', *models(files, 1, 2), *AUTO)
    each = [expected(files, seed, Frame(size=(32, 32))) for seed in (1, 2)]
    settings = DADSet(tmp_path / 'set').settings
    assert settings['teacher']['flags']['dad_teacher_temperatures'] == each
    assert settings['teacher']['temperature'] == float(f'{sum(each) / 2:.3g}')
    command = generate_command(DADSet(tmp_path / 'set'), 'OUT')
    assert f'--dad-teacher-temperatures {each[0]:g} {each[1]:g}' in command
    assert f'--dad-temperature {settings["teacher"]["temperature"]:g}' in command
    monkeypatch.setattr(temperature, 'fit_temperature', no_fit)
    make_set(files, tmp_path / 'set', *models(files, 1, 2), *AUTO)
    for given in (AUTO, ()):
        args = from_set(files, tmp_path / 'set', *given)
        assert args.dad_teacher_temperatures == each
        teacher = temperature_teacher(args)
        assert teacher.fingerprint() == settings['teacher']['fingerprint']
    assert from_set(files, tmp_path / 'set', '--dad-temperature', '2').dad_temperature == 2.0


def test_answers_on_augmentations_are_kept_at_it(files, tmp_path):
    make_set(files, tmp_path / 'set', *models(files, 1))
    again = (*models(files, 1), '--reinforce', 1, '--reinforce-top-k', 2, *AUTO)
    make_set(files, tmp_path / 'set', *again)
    number = expected(files, 1, Frame(size=(32, 32)))
    found = Reinforcement(DADSet(tmp_path / 'set'))
    assert found.settings['logits']['temperature'] == number


def test_preview_and_diagnose_find_it_on_the_images_that_they_show(files, tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    sized = ('--data-dir', str(files / 'data'), '--img-size', '32', '--device', 'cpu', '--images', '4')
    preview.main([*sized, '--output', str(tmp_path / 'out'), *models(files, 1, 2), *AUTO])
    frame = Frame(size=(32, 32))
    for seed in (1, 2):
        number = expected(files, seed, frame, 'validation')
        assert f'{number:g}, where the answers of {specs(files, seed)[0]}' in caplog.text
    caplog.clear()
    ood, student = f'odd={files / "data" / "train"}', specs(files, 2)[0]
    more = ('--ood', ood, '--student', student, '--workers', '0', '--splits', '1')
    fitted = diagnose.main([*sized, *more, *models(files, 1), *AUTO])
    assert caplog.text.count('--dad-temperature auto: ') == 1
    plain = diagnose.main([*sized, *more, *models(files, 1)])
    assert fitted['risks']['clean']['divergence'] != plain['risks']['clean']['divergence']
