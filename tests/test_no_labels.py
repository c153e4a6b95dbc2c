"""``--no-labels``: flat folders and streams of image-text shards, through every command that makes DAD views."""

import io
import pickle
import re
import tarfile

import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import to_tensor

import train_dad
from timm_dad import timm_train
from timm_dad.commands import generate, info, preview
from timm_dad.commands.generate_job import Job, open_source
from timm_dad.dad_sets.read import DADSet
from timm_dad.dad_sets.verify import verify
from timm_dad.data.datasets import dataset_class_names, open_dataset
from timm_dad.data.images import Source
from timm_dad.demo.data import ASSETS, DemoDataset
from timm_dad.diagnosis import command as diagnose
from timm_dad.flags.runs import trained_classes
from timm_dad.flags.train import create_parser as train_parser

NAMES = str(ASSETS / 'classnames.txt')
MODELS = ['--dad-teacher', 'demo', '--dad-vqgan', 'demo', '--dad-classnames', NAMES, '--img-size', '32']
COUNT = 12


def pictures():
    demo = DemoDataset('noto', 'train')
    return [Image.fromarray(demo.images[index * 40]) for index in range(COUNT)]


def encoded(picture):
    with io.BytesIO() as file:
        picture.save(file, 'jpeg', quality=95)
        return file.getvalue()


@pytest.fixture(scope='module')
def flat(tmp_path_factory):
    """Pictures in no class folder."""
    root = tmp_path_factory.mktemp('flat')
    for index, picture in enumerate(pictures()):
        picture.save(root / f'{index:02}.png')
    return root


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """Image-text shards as downloaders write them: .jpg, .txt and .json, no .cls and no _info.json."""
    root = tmp_path_factory.mktemp('shards')
    for shard in range(2):
        with tarfile.open(root / f'{shard:05}.tar', 'w') as tar:
            for index, picture in enumerate(pictures()[shard::2]):
                parts = {'jpg': encoded(picture), 'txt': b'an emoji', 'json': b'{"caption": "an emoji"}'}
                for suffix, data in parts.items():
                    entry = tarfile.TarInfo(f'{shard:05}{index:04}.{suffix}')
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return root


def of_folder(root):
    return ['--data-dir', str(root), '--train-split', '']


def of_shards(root):
    return ['--dataset', 'wds/', '--data-dir', str(root), '--train-split', f'{{00000..00001}}.tar|{COUNT}']


def train(tmp_path, data, *flags, models=MODELS):
    argv = [*data, '--dad', *models, '--no-labels', '--model', 'test_resnet', '--val-split', '', '--epochs', '1']
    argv += ['--batch-size', '4', '--workers', '0', '--output', str(tmp_path), '--experiment', 'run', *flags]
    return train_dad.main(argv)


def last_line(tmp_path):
    """Names and values of the last epoch."""
    header, *_, last = (tmp_path / 'run' / 'summary.csv').read_text().splitlines()
    return dict(zip(header.split(','), last.split(','), strict=True))


def weights(tmp_path):
    return torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)['state_dict']


def one_line(capsys, main, argv, message):
    """The command ends with one line that matches."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'error:' in line]
    assert ended.value.code == 2
    assert re.search(message, line), line


def test_images_of_a_folder_have_their_paths_as_names_and_no_class(flat):
    source = Source(open_dataset('', str(flat), '', '--data-dir', labels=False))
    assert dataset_class_names(source.dataset) is None
    assert [source.name(index, source.read(index).label) for index in (0, 11)] == ['images/00', 'images/11']
    assert source.listing() is not None


def test_images_of_class_folders_and_tars_lose_their_labels(tmp_path):
    for label in ('cat', 'dog'):
        (tmp_path / 'data' / label).mkdir(parents=True)
        Image.new('RGB', (8, 8), (90, 9, 9)).save(tmp_path / 'data' / label / '0.png')
    with tarfile.open(tmp_path / 'data.tar', 'w') as tar:
        tar.add(tmp_path / 'data', '.')
    for root in (tmp_path / 'data', tmp_path / 'data.tar'):
        labelled = open_dataset('', str(root), '', '--data-dir')
        unlabelled = open_dataset('', str(root), '', '--data-dir', labels=False)
        assert [labelled[index][1] for index in range(2)] == [0, 1]
        assert [unlabelled[index][1] for index in range(2)] == [0, 0]
        assert dataset_class_names(unlabelled) is None


def test_samples_without_cls_pass_and_those_with_it_lose_it(shards, tmp_path):
    pytest.importorskip('webdataset')
    split = f'{{00000..00001}}.tar|{COUNT}'
    stream = open_dataset('wds/', str(shards), split, '--data-dir', labels=False)
    assert [label for _, label in stream] == [0] * COUNT
    assert not list(open_dataset('wds/', str(shards), split, '--data-dir'))  # what timm makes of them
    with tarfile.open(tmp_path / '0.tar', 'w') as tar:
        for name, data in (('0.jpg', encoded(pictures()[0])), ('0.cls', b'7')):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    assert [label for _, label in open_dataset('wds/', str(tmp_path), '0.tar|1', '-', labels=False)] == [0]


@pytest.mark.slow
@pytest.mark.parametrize('flags', [[], ['--dad-cache', '1'], ['--dad-view', 'random'], ['--dad-view-aug', 'base']])
def test_a_flat_folder_trains(flat, tmp_path, flags):
    models = [*MODELS[:2], *MODELS[4:]] if '--dad-view' in flags else MODELS  # without a VQGAN
    train(tmp_path, of_folder(flat), '--mixup', '0.2', *flags, models=models)
    parts = last_line(tmp_path)
    assert float(parts['train_loss']) > 0
    assert 'train_task_loss' not in parts
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize('workers', ['0', '2'])
def test_a_stream_of_images_and_texts_trains_as_it_is(shards, tmp_path, workers):
    pytest.importorskip('webdataset')
    train(tmp_path, of_shards(shards), '--workers', workers)
    assert float(last_line(tmp_path)['train_loss']) > 0
    saved = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert (saved['num_classes'], saved['dad_task_weight'], saved['no_labels']) == (16, 0.0, True)


def test_labels_that_are_there_are_not_read(tmp_path):
    """Pictures in folders of random classes train as pictures in one folder do."""
    own = []
    for case, folders in enumerate((['a'] * COUNT, ['b', 'a', 'c'] * (COUNT // 3))):
        root = tmp_path / f'data{case}'
        for index, (folder, picture) in enumerate(zip(folders, pictures(), strict=True)):
            path = root / f'{index:02}' / folder / '0.png'  # sorted by number
            path.parent.mkdir(parents=True)
            picture.save(path)
        train(tmp_path / str(case), of_folder(root))
        own.append(weights(tmp_path / str(case)))
    assert all(torch.equal(own[0][name], own[1][name]) for name in own[0])


@pytest.mark.slow
def test_validation_keeps_its_labels_and_names_the_classes(flat, tmp_path):
    root = tmp_path / 'data'
    for label, picture in zip('ab', pictures(), strict=False):
        (root / 'val' / label).mkdir(parents=True)
        picture.save(root / 'val' / label / '0.png')
    (root / 'train').symlink_to(flat)
    models = [flag for flag in MODELS if flag not in ('--dad-classnames', NAMES)]
    results = train(tmp_path, ['--data-dir', str(root)], '--train-split', 'train', '--val-split', 'val', models=models)
    assert results['best_metric'] in (0, 50, 100)
    assert yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())['num_classes'] == 2


def test_stored_logits_take_the_place_of_the_teacher(flat, tmp_path):
    output = str(tmp_path / 'set')
    generate.main([*of_folder(flat), *MODELS, '--no-labels', '--workers', '0', '--output', output,
                   '--dad-store-logits', '5'])  # fmt: skip
    flags = ['--dad-dir', output, '--dad-stored-logits', '--no-aug', '--img-size', '32']
    train(tmp_path, of_folder(flat), models=flags)
    kept = [item['views'][0]['kept'] for manifest in DADSet(output).manifests() for item in manifest.items]
    assert float(last_line(tmp_path)['train_teacher_kept']) == pytest.approx(sum(kept) / COUNT, abs=1e-3)


@pytest.mark.parametrize('kind', ['folder', 'wds', 'shards'])
def test_a_set_without_labels_is_made_and_trained_from(flat, shards, tmp_path, capsys, kind):
    data = of_folder(flat)
    if kind == 'shards':
        pytest.importorskip('webdataset')
        data = of_shards(shards)
    output = tmp_path / 'set'
    summary = generate.main(
        [*data, *MODELS, '--no-labels', '--format', 'folder' if kind == 'folder' else 'wds', '--output', str(output),
         '--workers', '0']
    )  # fmt: skip
    assert (summary['images'], summary['kept_by_class']) == (COUNT, {})
    assert re.search(r'teacher keeps its answer \d', capsys.readouterr().out)
    dad_set = DADSet(output)
    assert not dad_set.one_class
    assert not (output / 'class_map.txt').exists()
    assert not list(verify(output))
    train(tmp_path, data, '--dad-dir', str(output), models=['--img-size', '32'])  # classes are the set's
    assert float(last_line(tmp_path)['train_dad_loss']) > 0


def test_a_set_holds_the_views_of_the_teachers_answer(flat, tmp_path):
    """A set of the same pictures whose labels are the teacher's answers has the same views."""
    argv = [*MODELS, '--workers', '0']
    own = [*of_folder(flat), *argv, '--no-labels', '--output', str(tmp_path / 'own')]
    generate.main(own)
    args = generate.parse_args(own)
    job = Job.open(args, open_source(args), torch.device('cpu'))
    frame, answers = job.config.frame.transform(), {}
    for index, picture in enumerate(pictures()):
        folder = tmp_path / 'data' / f'{index:02}'
        folder.mkdir(parents=True)
        picture.save(folder / '0.png')
        answers[folder.name] = int(job.augment.ask_teacher(to_tensor(frame(picture))[None]).argmax())
    (tmp_path / 'map.pkl').write_bytes(pickle.dumps(answers))
    labelled = [*of_folder(tmp_path / 'data'), '--class-map', str(tmp_path / 'map.pkl'), '--num-classes', '16']
    generate.main([*labelled, *argv, '--output', str(tmp_path / 'with')])
    one, other = (
        [item['views'][0] for manifest in DADSet(tmp_path / name).manifests() for item in manifest.items]
        for name in ('own', 'with')
    )
    facts = ('sha256', 'kept', 'l2', 'seed')
    assert [[view[fact] for fact in facts] for view in one] == [[view[fact] for fact in facts] for view in other]


def test_sets_with_labels_and_without_are_not_mixed(flat, tmp_path, capsys):
    generate.main([*of_folder(flat), *MODELS, '--no-labels', '--workers', '0', '--output', str(tmp_path / 'own')])
    write_set_with_labels(tmp_path / 'with')
    argv = ['--dad', '--img-size', '32', '--num-classes', '16', '--model', 'test_resnet', *of_folder(flat)]
    own, other = (['--dad-dir', str(tmp_path / name)] for name in ('own', 'with'))
    one_line(capsys, train_dad.main, [*argv, *own], r'own was made without labels: add --no-labels, or make another')
    one_line(capsys, train_dad.main, [*argv, *other, '--no-labels'], r'made with labels: leave out --no-labels, or')
    ood = ['--ood', 'demo/twemoji', '--dataset', 'demo/noto', '--dad-teacher', 'demo', *own]
    one_line(capsys, diagnose.main, ood, r'own was made without labels: add --no-labels, or make another set')


def write_set_with_labels(root):
    root.mkdir()
    (root / 'dad_set.json').write_text('{"format_version": 1, "data": {"num_classes": 16}}')


def test_previews_show_the_teachers_answer(flat, tmp_path, capsys):
    argv = ['--data-dir', str(flat), '--split', '', *MODELS, '--no-labels', '--images', '2']
    images = preview.main([*argv, '--output', str(tmp_path)])
    assert [image.labels[0] for image in images] == [image.top('x', 1)[0][0] for image in images]
    assert re.search(r'teacher keeps its answer on Q\(x\) \d, x_dad \d', capsys.readouterr().out)
    page = (tmp_path / 'preview.html').read_text()
    assert 'image 0 (00.png), teacher&#x27;s answer on x: ' in page
    assert 'label: ' not in re.sub('<details>.*</details>', '', page, flags=re.DOTALL)


def test_the_first_look_says_how_often_the_answer_is_kept(flat, tmp_path, caplog):
    caplog.set_level('INFO', logger='timm_dad')
    train(tmp_path, of_folder(flat))
    assert re.search(r'DAD on 12 pictures: teacher keeps its answer on Q\(x\) \d+%, x_dad \d+%; PSNR', caplog.text)
    assert 'right on' not in caplog.text


def test_info_measures_a_training_without_labels(flat, capsys):
    argv = [*of_folder(flat), '--dad', *MODELS, '--no-labels', '--model', 'test_resnet', '--val-split', '', '--json']
    report = info.main([*argv, '--batch-size', '4', '--workers', '0', '--batches', '1'])
    assert report['parts']


def test_a_training_without_labels_names_its_classes_by_its_validation_data(tmp_path):
    for label in ('cat', 'dog'):
        (tmp_path / 'val' / label).mkdir(parents=True)
        pictures()[0].save(tmp_path / 'val' / label / '0.png')
        (tmp_path / 'train' / f'part-{label}').mkdir(parents=True)
        pictures()[0].save(tmp_path / 'train' / f'part-{label}' / '0.png')
    flags = {'data_dir': str(tmp_path), 'train_split': 'train', 'val_split': 'val'}
    assert trained_classes({**flags, 'no_labels': True}) == ['cat', 'dog']
    assert trained_classes({**flags, 'no_labels': True, 'val_split': ''}) is None
    assert trained_classes(flags) == ['part-cat', 'part-dog']


BAD = {
    '': (['--no-labels'], r'--no-labels needs --dad: '),
    'smoothing': (['--dad', '--smoothing', '0.1'], r'--smoothing is about the task loss, but --no-labels leaves none'),
    'bce': (['--dad', '--bce-loss'], r'--bce-loss is about the task loss'),
    'weight': (['--dad', '--dad-task-weight', '0.5'], r'--dad-task-weight is about the task loss'),
    'extra': (['--dad', '--dad-extra-task-weight', '0.5'], r'--dad-extra-task-weight is about the task loss'),
    'splits': (['--dad', '--aug-splits', '3'], r'--aug-splits makes views only for the task loss'),
    'nothing': (['--dad', '--dad-kd-weight', '0', '--dad-weight', '0'], r'--dad-kd-weight or --dad-weight must be'),
    'map': (['--dad', '--class-map', 'map.txt', '--val-split', ''], r'--class-map is about labels'),
    'kind': (['--dad', '--dataset', 'hfds/x', '--data-dir', ''], r'--no-labels is for folders and tars .* hfds/x'),
}


@pytest.mark.parametrize(('flags', 'message'), BAD.values(), ids=BAD)
def test_a_bad_flag_ends_with_one_line(flat, capsys, flags, message):
    models = MODELS if '--dad' in flags else []
    one_line(capsys, train_dad.main, [*of_folder(flat), '--no-labels', *models, *flags], message)


def test_classes_that_nobody_names_end_with_one_line(flat, tmp_path, capsys):
    models, (one, empty) = MODELS[:4], (tmp_path / 'one.txt', ['--val-split', ''])
    one.write_text('cat')
    argv = [*of_folder(flat), '--no-labels', *models]
    for main, command in (
        (train_dad.main, [*argv, '--dad', *empty]),
        (generate.main, [*argv, '--output', str(tmp_path / 'set')]),
        (preview.main, ['--data-dir', str(flat), '--split', '', '--no-labels', *models]),
    ):
        one_line(capsys, main, command, r'--no-labels leaves the classes open: .* --dad-classnames .* --num-classes')
        message = r'--dad-classnames: .*one\.txt must name two or more classes'
        one_line(capsys, main, [*command, '--dad-classnames', str(one)], message)
        one_line(
            capsys, main, [*command, '--num-classes', '4'], r'zero-shot teacher needs class names.*--dad-classnames'
        )


def test_timms_own_script_refuses_it_in_one_line(flat, capsys, monkeypatch):
    argv = ['--dad', *MODELS, '--no-labels']
    monkeypatch.setattr('sys.argv', ['train.py', *argv])
    args = train_parser().parse_args([*argv, *of_folder(flat)])
    args.naflex_loader = False
    one_line(capsys, lambda _: timm_train.check_args(args), argv, r'--no-labels needs `timm-dad train`')
