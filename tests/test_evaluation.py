"""Evaluation: every image once and in order, what counts as right, what is kept and taken again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from predicted import random_predictions
from timm.data import ImageNetInfo

from timm_dad.data.images import Frame
from timm_dad.demo.data import class_names
from timm_dad.evaluation.attacks import EvalAttackConfig
from timm_dad.evaluation.corruptions import corrupt
from timm_dad.evaluation.evaluate import check_model, evaluate, resize_note
from timm_dad.evaluation.models import EvalModel, ModelOptions, parse_models
from timm_dad.evaluation.predict import EvalConfig, Predictions, evaluate_part, judge, part_images
from timm_dad.evaluation.store import PredictionStore, _version
from timm_dad.evaluation.suites.changed import (
    AttackedPart,
    CorruptedPart,
    attacked_suites,
    corrupted_suites,
)
from timm_dad.evaluation.suites.open import open_suite
from timm_dad.evaluation.suites.suite import Chosen, Part, Suite, open_picture

WNIDS = ImageNetInfo().label_names()
CPU = torch.device('cpu')


class Colours:
    """Pictures whose red says their number, and whose green their size's."""

    def __init__(self, count, sizes=((40, 36),), classes=6):
        self.count, self.sizes, self.classes = count, sizes, classes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        size = self.sizes[index % len(self.sizes)]
        return Image.new('RGB', size, (10 * index, 7, 0)), index % self.classes

    def filename(self, index, *, absolute=False):
        return f'class{index % self.classes}/{index}.png'


class Broken(Colours):
    def __getitem__(self, index):
        if index == 3:
            raise ValueError('class3/3.png does not decode')
        return super().__getitem__(index)


def by_red(x_pix):
    """Logits of 6 classes: the number that the red says, modulo 6, but for number 4, which is taken for 5."""
    number = (x_pix[:, 0].mean(dim=(1, 2)) * 25.5).round().long() % 6
    number = torch.where(number == 4, 5, number)
    return 3.0 * torch.nn.functional.one_hot(number, 6)


def model(network=by_red, size=(32, 32)):
    return EvalModel(name='net', network=network, frame=Frame(size=size), fingerprint='net')


def suite(dataset, **more):
    part = more.pop('part', Part(name='val', dataset=dataset))
    values = {'name': 'colours', 'kind': 'ood', 'class_names': None, 'num_classes': 6, **more}
    return Suite(parts=(part,), **values)


def run(dataset, network=by_red, config=None, **more):
    of = suite(dataset, **more)
    return evaluate_part(model(network), of, of.parts[0], config or EvalConfig(workers=0), CPU)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('batch_size', 'workers'), [(1, 0), (4, 2), (100, 0)])
def test_every_image_once_and_in_order(batch_size, workers):
    found = run(Colours(10), config=EvalConfig(batch_size=batch_size, workers=workers))
    assert found.label.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert found.predicted.tolist() == [0, 1, 2, 3, 5, 5, 0, 1, 2, 3]
    assert found.correct.tolist() == [True] * 4 + [False] + [True] * 5
    confidence = torch.tensor([3.0, 0, 0, 0, 0, 0]).softmax(dim=0)[0].item()
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-6)


def test_images_are_cut_for_the_model_unless_the_suite_says_no():
    seen = []

    def look(x_pix):
        seen.append(x_pix)
        return by_red(x_pix)

    run(Colours(2), look)
    run(Colours(2), look, resize=False)
    assert [tuple(x_pix.shape) for x_pix in seen] == [(2, 3, 32, 32), (2, 3, 36, 40)]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([0, 7 / 255, 0])


def test_images_that_go_in_as_they_are_must_have_one_size():
    with pytest.raises(ValueError, match=r'suite colours: .* must all have one size, got \(36, 40\) and \(40, 36\)'):
        run(Colours(4, sizes=((40, 36), (36, 40))), resize=False)


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line(workers):
    with pytest.raises(ValueError, match=r'^suite colours: class3/3.png does not decode$'):
        run(Broken(6), config=EvalConfig(batch_size=2, workers=workers))


def test_a_picture_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    Image.new('RGB', (40, 40)).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(ValueError, match=r'pictures must decode, but a\.png does not: .*decompression bomb'):
        open_picture(tmp_path / 'a.png', 'a.png')


def test_an_error_that_does_not_name_the_file_gets_its_name():
    class TooSmall(Colours):
        def __getitem__(self, index):
            return Image.new('RGB', (20, 40)), 0

    part = CorruptedPart(name='fog/1', dataset=TooSmall(1), corruption='fog', severity=1)
    with pytest.raises(ValueError, match=r'suite colours: class0/0.png: corruptions need at least 32 pixels'):
        run(TooSmall(1), part=part, resize=False)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match=r'^net: its logits on colours are not finite; use precision fp32'):
        run(Colours(2), lambda x_pix: by_red(x_pix) / 0)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_s_random_numbers_are_left_alone(workers):
    before = torch.get_rng_state()
    part = CorruptedPart(name='shot_noise/3', dataset=Colours(3), corruption='shot_noise', severity=3)
    run(Colours(3), part=part, config=EvalConfig(batch_size=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(('field', 'value'), [('batch_size', 0), ('workers', -1), ('seed', -1)])
def test_bad_settings(field, value):
    with pytest.raises(ValueError, match=rf'{field} must be [01] or more, got {value}'):
        EvalConfig(**{field: value})


# --- what is right --------------------------------------------------------------------------------------------------


def answers(rows, label, **more):
    of = suite(Colours(len(rows)), **more)
    return judge(of, of.parts[0], np.array(rows), np.full(len(rows), 0.5, np.float32), np.array(label))


def test_one_of_the_five_largest_is_top5():
    found = answers([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], [1, 5, 0])
    assert found.correct.tolist() == [True, False, False]
    assert found.correct5.tolist() == [True, True, False]


def test_grouped_classes_count_as_their_group():
    # Group 0 is ImageNet's classes 10 and 11, group 1 is its class 20; all else is none.
    groups = ((WNIDS[10], WNIDS[11]), (WNIDS[20],))
    rows = [[11, 0, 1, 2, 3], [0, 1, 2, 3, 10], [20, 11, 1, 2, 3], [5, 6, 7, 8, 9]]
    found = answers(rows, [0, 0, 0, 1], groups=groups)
    assert found.predicted.tolist() == [0, -1, 1, -1]
    assert found.correct.tolist() == [True, False, False, False]
    assert found.correct5.tolist() == [True, True, True, False]


def test_each_of_several_labels_is_right():
    part = Part(name='val', dataset=Colours(3), multi_labels=[(4, 1), (5,), (0,)])
    found = answers([[1, 2, 3, 4, 5]] * 3, [9, 9, 9], part=part)
    assert found.correct.tolist() == [True, False, False]
    assert found.correct5.tolist() == [True, True, False]


def test_fewer_than_five_classes():
    found = run(Colours(3, classes=2), lambda x_pix: by_red(x_pix)[:, :2])
    assert found.correct5.all()


# --- corrupted and attacked -----------------------------------------------------------------------------------------


def test_images_are_corrupted_once_they_have_the_models_size():
    original = Colours(3)
    (made,) = corrupted_suites(suite(original), ['gaussian_noise', 'pixelate'], [2, 5])
    assert (made.name, made.kind) == ('colours-corrupted', 'corruption')
    assert [part.name for part in made.parts] == [
        *('gaussian_noise/2', 'gaussian_noise/5', 'pixelate/2', 'pixelate/5'),
    ]
    images = [part_images(model().frame, made, part, seed=1) for part in (made.parts[0], made.parts[0], made.parts[1])]
    pixels = [[data[index].pixels for index in range(3)] for data in images]
    assert all(torch.equal(a, b) for a, b in zip(pixels[0], pixels[1], strict=True))
    assert not torch.equal(pixels[0][0] - pixels[0][1], torch.zeros_like(pixels[0][0]))
    assert pixels[2][0].float().std() > pixels[0][0].float().std()
    cut = np.asarray(model().frame.transform()(original[2][0]))
    seed = np.random.SeedSequence([images[0].change.seed, 2]).generate_state(1)[0]
    expected = corrupt(cut, 'gaussian_noise', 2, int(seed))
    assert np.array_equal(pixels[0][2].permute(1, 2, 0), expected)
    other = part_images(model().frame, made, made.parts[0], seed=2)
    assert not torch.equal(other[0].pixels, pixels[0][0])


def test_a_suite_of_several_parts_gives_one_corrupted_suite_each():
    two = Suite(
        name='v2', kind='ood', class_names=None, num_classes=6,
        parts=(Part(name='a', dataset=Colours(3)), Part(name='b', dataset=Colours(2))),
    )  # fmt: skip
    assert [made.name for made in corrupted_suites(two, ['fog'], [1])] == ['v2-a-corrupted', 'v2-b-corrupted']


def linear(x_pix):
    """Six classes by a fixed linear map: near enough to each other for an attack."""
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    return 20 * x_pix.mean(dim=(2, 3)) @ weight


def attacked(dataset, attack, **more):
    (made,) = attacked_suites(suite(dataset), [attack], **more)
    return made, made.parts[0]


class Grey(Colours):
    """Pictures with the label that ``linear`` gives them."""

    def __getitem__(self, index):
        image, _ = super().__getitem__(index)
        x_pix = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
        return image, int(linear(x_pix).argmax())


@pytest.mark.parametrize('attack', ['fgsm', 'pgd'])
def test_attacks_are_by_eps_and_not_by_batch(attack):
    made, part = attacked(Grey(12), attack)
    assert (made.name, made.kind, part.name) == (f'colours-{attack}', 'adversarial', 'val')
    right = {}
    for eps in (1e-6, 0.05):
        for batch_size in (5, 12):
            config = EvalConfig(workers=0, batch_size=batch_size, attack=EvalAttackConfig(eps=eps))
            found = evaluate_part(model(linear), made, part, config, CPU)
            right.setdefault(eps, []).append(found.correct.tolist())
        assert right[eps][0] == right[eps][1]
    assert sum(right[1e-6][0]) == 12
    assert sum(right[0.05][0]) < 12


def test_some_images_are_spread_evenly():
    _, part = attacked(Colours(10), 'pgd', max_images=4)
    assert [part.dataset[index][1] for index in range(len(part.dataset))] == [0, 3, 0, 3]
    assert part.dataset.filename(1) == 'class3/3.png'
    _, part = attacked(Colours(3), 'pgd', max_images=9)
    assert len(part.dataset) == 3


@pytest.mark.parametrize(
    'more', [{'groups': ((WNIDS[0],),)}, {'part': Part(name='val', dataset=Colours(1), multi_labels=[(1, 2)])}]
)
def test_what_has_no_one_label_is_not_attacked_and_named(more, caplog):
    assert list(attacked_suites(suite(Colours(1), **more), [])) == []
    assert not caplog.text
    assert list(attacked_suites(suite(Colours(1), **more), ['fgsm'])) == []
    assert 'colours is not attacked' in caplog.text


def test_models_are_checked_before_work_starts():
    (corrupted,) = corrupted_suites(suite(Colours(1)), ['fog'], [1])
    check_model(model(), corrupted, 6)
    with pytest.raises(
        ValueError,
        match=r'suite colours-corrupted: corruptions need images of at least 32 pixels .*, but net takes 32 x 24',
    ):
        check_model(model(size=(24, 32)), corrupted, 6)
    made, _ = attacked(Colours(1), 'autoattack')
    with pytest.raises(ValueError, match=r'suite colours-autoattack: autoattack needs 4 classes'):
        check_model(model(), made, 3)


def test_only_networks_of_one_other_size_resize_what_goes_in_as_it_is():
    uncut = suite(Colours(1), resize=False)
    assert resize_note(model(), uncut) == (
        'net takes only images of 32 x 32: those of colours, 40 x 36, are resized for it.'
    )
    assert resize_note(model(size=(36, 40)), uncut) is None
    assert resize_note(model(), suite(Colours(1))) is None
    assert resize_note(replace(model(), uncut_network=by_red), uncut) is None


def test_a_network_of_any_size_gets_what_goes_in_as_it_is():
    seen = []

    def see(name):
        return lambda x_pix: (seen.append((name, *x_pix.shape[2:])), by_red(x_pix))[1]

    both = replace(model(see('resizes')), uncut_network=see('as it is'))
    for resize in (True, False):
        of = suite(Colours(2), resize=resize)
        evaluate_part(both, of, of.parts[0], EvalConfig(workers=0), CPU)
    assert seen == [('resizes', 32, 32), ('as it is', 36, 40)]


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.fixture
def facts(tmp_path):
    def of(dataset=None, config=None, precision='fp32', network='net', **more):
        made = suite(dataset or Colours(3), **more)
        return PredictionStore(tmp_path).facts(network, made, made.parts[0], config or EvalConfig(), precision)

    return of


def test_predictions_depend_on_these_facts(facts, tmp_path):
    class Other(Colours):
        def __getitem__(self, index):
            return Image.new('RGB', (40, 36)), index

    class Renamed(Colours):
        def filename(self, index, *, absolute=False):
            return f'{index}.png'

    class Moved(Colours):
        def filename(self, index, *, absolute=False):
            return f'/elsewhere/{super().filename(index)}'

    fog = {'corruption': 'fog', 'severity': 1}

    def part(**more):
        return CorruptedPart(**{'name': 'fog/1', 'dataset': Colours(3), **fog, **more})

    different = [
        facts(),
        facts(Colours(4)),
        facts(Other(3)),
        facts(Renamed(3)),
        facts(precision='bf16'),
        facts(network='other'),
        facts(resize=False),
        facts(groups=((WNIDS[0],),)),
        facts(part=Part(name='val', dataset=Colours(3), multi_labels=[(1,), (2,), (3,)])),
        facts(part=part()),
        facts(part=part(), config=EvalConfig(seed=1)),
        facts(part=part(severity=2)),
        facts(part=AttackedPart(name='val', dataset=Colours(3), attack='pgd')),
        facts(part=AttackedPart(name='val', dataset=Colours(3), attack='fgsm')),
        facts(
            part=AttackedPart(name='val', dataset=Colours(3), attack='pgd'),
            config=EvalConfig(attack=EvalAttackConfig(eps=0.1)),
        ),
        facts(part=AttackedPart(name='val', dataset=Colours(3), attack='autoattack')),
        facts(part=AttackedPart(name='val', dataset=Colours(3), attack='autoattack'), config=EvalConfig(batch_size=3)),
    ]
    texts = [json.dumps(one, sort_keys=True) for one in different]
    assert len(set(texts)) == len(texts)
    assert facts() == facts(Moved(3)) == facts(config=EvalConfig(batch_size=3, workers=1, seed=5))


@pytest.mark.parametrize(
    ('part', 'module'),
    [
        (CorruptedPart(name='fog/1', dataset=Colours(3), corruption='fog', severity=1), 'imagecorruptions'),
        (AttackedPart(name='val', dataset=Colours(3), attack='autoattack'), 'pyautoattack'),
    ],
)
def test_code_and_libraries_are_facts(facts, part, module, monkeypatch):
    before = facts(part=part)
    plain = facts()
    monkeypatch.setattr('timm_dad.evaluation.store._version', lambda name: f'{name} 99')
    assert facts(part=part) == {**before, 'library': f'{module} 99'} != before
    assert facts() == plain
    monkeypatch.setattr('timm_dad.evaluation.store.SCHEMA', 99)
    assert facts() == {**plain, 'schema': 99} != plain


def test_versions_are_those_of_the_installed_packages():
    assert _version('timm') == f'timm {timm.__version__}'
    assert _version('no_such_module') is None


def test_sizes_of_files_are_a_fact(tmp_path, facts, monkeypatch):
    class Files(Colours):
        def filename(self, index, *, absolute=False):
            return str(tmp_path / f'{index}.png') if absolute else f'{index}.png'

    for index in range(3):
        (tmp_path / f'{index}.png').write_bytes(b'12')
    before = facts(Files(3))
    (tmp_path / '1.png').write_bytes(b'123')
    assert facts(Files(3)) != before
    # Of many, files are not all asked for: 3.75 million are ImageNet-C's, and other processes wait.
    monkeypatch.setattr('timm_dad.evaluation.store._SIZES', 2)
    before = facts(Files(3))
    (tmp_path / '1.png').write_bytes(b'1234')
    assert facts(Files(3)) == before
    (tmp_path / '2.png').write_bytes(b'1234')
    assert facts(Files(3)) != before


@pytest.fixture(scope='module')
def twemoji():
    whole = open_suite('twemoji', 'demo/twemoji')
    return replace(whole, parts=(replace(whole.parts[0], dataset=Chosen(whole.parts[0].dataset, range(0, 275, 14))),))


def names_of(output):
    return {str(path.relative_to(output)) for path in output.rglob('*') if path.is_file()}


def test_a_rerun_takes_what_is_there_and_makes_the_rest(twemoji, tmp_path, monkeypatch):
    made = []
    whole = evaluate_part

    def count(model, suite, part, *rest):
        made.append(f'{model.name} {suite.name}/{part.name}')
        return whole(model, suite, part, *rest)

    monkeypatch.setattr('timm_dad.evaluation.evaluate.evaluate_part', count)
    (corrupted,) = corrupted_suites(twemoji, ['contrast'], [1, 2])

    def go(seed=0, models=('demo', 'other=demo')):
        made.clear()
        config = EvalConfig(workers=0, seed=seed)
        return evaluate(parse_models(models), [twemoji, corrupted], config, ModelOptions(), tmp_path, CPU).results

    first = go()
    assert len(made) == 6
    names = {
        f'predictions/{model}/{part}.{suffix}'
        for model in ('demo', 'other')
        for part in ('twemoji/test', 'twemoji-corrupted/contrast-1', 'twemoji-corrupted/contrast-2')
        for suffix in ('npz', 'json')
    }
    assert names_of(tmp_path) == names
    assert first['demo']['twemoji']['test'].correct.mean() > 0.6
    content = {name: (tmp_path / name).read_bytes() for name in names}
    again = go()
    assert not made
    np.testing.assert_equal(vars(again['demo']['twemoji']['test']), vars(first['demo']['twemoji']['test']))
    # Killed between the two files of a part, and before another.
    (tmp_path / 'predictions/demo/twemoji/test.json').unlink()
    (tmp_path / 'predictions/other/twemoji-corrupted/contrast-2.npz').unlink()
    go()
    assert made == ['demo twemoji/test', 'other twemoji-corrupted/contrast/2']
    assert {name: (tmp_path / name).read_bytes() for name in names} == content
    go(seed=1, models=('demo',))
    assert made == ['demo twemoji-corrupted/contrast/1', 'demo twemoji-corrupted/contrast/2']


def _swap(one, two):
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def _flip(one, _):
    content = bytearray(one.read_bytes())
    content[300] ^= 1
    one.write_bytes(content)


def _edit(one, _):
    found = Predictions.load(one)
    replace(found, correct=~found.correct).save(one)


def _forget_hash(one, _):
    facts = json.loads(one.with_suffix('.json').read_text())
    del facts['predictions']
    one.with_suffix('.json').write_text(json.dumps(facts))


@pytest.mark.parametrize(
    'harm',
    [
        _swap,
        _flip,
        _edit,
        _forget_hash,
        lambda one, _: one.write_bytes(one.read_bytes()[:200]),
        lambda one, _: one.write_bytes(b''),
    ],
)
def test_stored_predictions_that_changed_are_made_again(harm, twemoji, tmp_path, caplog):
    store, part = PredictionStore(tmp_path), twemoji.parts[0]
    facts = {model: store.facts(model, twemoji, part, EvalConfig(), 'fp32') for model in ('a', 'b')}
    for seed, model in enumerate(facts):
        store.save(model, 'twemoji', 'test', random_predictions(seed, images=len(part.dataset)), facts[model])
        assert store.load(model, 'twemoji', 'test', facts[model]) is not None
    paths = [tmp_path / model / 'twemoji' / 'test.npz' for model in facts]
    harm(*paths)
    assert store.load('a', 'twemoji', 'test', facts['a']) is None
    assert f'{paths[0]} does not match its' in caplog.text


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04', b'nonsense', None])
def test_what_holds_no_predictions_is_named(content, tmp_path):
    path = tmp_path / 'test.npz'
    random_predictions(0).save(path)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match=r'test\.npz contains no predictions: .*; remove it to make them again'):
        Predictions.load(path)


@pytest.mark.parametrize('suffix', ['.npz', '.json'])
def test_a_folder_in_the_place_of_predictions_is_named(suffix, tmp_path):
    (tmp_path / 'a/val/test').with_suffix(suffix).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf'test\{suffix} must be a file, but it is a folder: move it away'):
        PredictionStore(tmp_path).load('a', 'val', 'test', {})


def test_models_are_opened_at_most_twice_for_the_same_classes(twemoji, tmp_path, monkeypatch):
    opened = []

    def count(spec, data, options, device):
        opened.append((spec.name, data.num_classes))
        network = lambda x_pix: 3.0 * torch.eye(data.num_classes)[torch.zeros(len(x_pix)).long()]  # noqa: E731
        return EvalModel(name=spec.name, network=network, frame=Frame(size=(32, 32)))

    monkeypatch.setattr('timm_dad.evaluation.evaluate.open_model', count)
    names = ('a', 'b', 'c', 'd')
    suites = [
        suite(Colours(4, classes=classes), name=name, num_classes=classes, resize=False)
        for name, classes in zip(names, (6, 3, 6, 3), strict=True)
    ]
    models = parse_models(['demo', 'other=demo'])
    config = EvalConfig(workers=0)
    found = evaluate(models, suites, config, ModelOptions(), tmp_path, CPU)
    assert sorted(opened) == 2 * [('demo', 3)] + 2 * [('demo', 6)] + 2 * [('other', 3)] + 2 * [('other', 6)]
    assert list(found.results) == ['demo', 'other']
    assert [sorted(of_model) for of_model in found.results.values()] == [list(names)] * 2
    assert len(found.notes) == 8
    assert found.notes[0].startswith('demo takes only images of 32 x 32: those of a, 40 x 36')
    opened.clear()
    evaluate(models, suites, config, ModelOptions(), tmp_path, CPU)  # nothing is left to do
    assert opened == [('demo', 6), ('demo', 3), ('other', 6), ('other', 3)]


def test_a_model_that_cannot_do_a_suite_ends_it_before_the_first_is_evaluated(twemoji, tmp_path, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name, **_: create(name))  # no download
    models = parse_models(['demo', 'test_vit'])
    with pytest.raises(ValueError, match=r'^--model test_vit: .* has 1000 classes and the data 16'):
        evaluate(models, [twemoji], EvalConfig(), ModelOptions(), tmp_path, CPU)
    assert not names_of(tmp_path)


def test_the_demos_classes_are_its_own(twemoji):
    assert twemoji.class_names == tuple(class_names())
