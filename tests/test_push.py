"""``timm-dad push``: cards, files, and what the hub is asked for; its functions are replaced by ones that copy."""

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from folders import CLASSES, write_pictures
from hub_cache import put_repo, use_cache
from huggingface_hub import DatasetCard, HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from pages import run_commands
from safetensors.torch import load_file, save_file
from test_generate import assert_same_tree, tree

from timm_dad.cli import main
from timm_dad.commands import upload
from timm_dad.commands.set_commands import generate_command, train_command
from timm_dad.common.timm_version import NEW_TIMM
from timm_dad.dad_sets.card import size_category
from timm_dad.dad_sets.formats import place_of
from timm_dad.dad_sets.hub import set_folder
from timm_dad.dad_sets.manifest import canonical_json, index_hash, read_json
from timm_dad.dad_sets.read import DADSet
from timm_dad.flags.train import parse_args

needs_new_timm = pytest.mark.skipif(not NEW_TIMM, reason='timm before 1.0.31 writes no size and normalization')
TOLD = ['--repo', 'ada/greys', '--license', 'cc-by-4.0', '--data-license', 'CC BY 4.0 of Ada', 'public domain']
MEAN, STD = [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with pictures and sets of them: ``plain``, ``codes`` with about every flag, ``answers``, ``mapped``."""
    root = tmp_path_factory.mktemp('made')
    write_pictures(root / 'pictures', train=3)
    teacher = timm.create_model('test_resnet', num_classes=4)
    save_file(teacher.state_dict(), root / 'teacher.safetensors')
    shared = f'--data-dir {root}/pictures --dad-vqgan demo -j 0'
    names = sorted(path.name for path in (root / 'pictures/train').iterdir())
    (root / 'map.txt').write_text('\n'.join(reversed(names)))
    flags = {
        'mapped': f'--img-size 32 --dad-teacher demo --class-map {root}/map.txt',
        'plain': '--img-size 32 --dad-teacher demo --format wds',
        'codes': f'--input-size 3 32 48 --dad-teacher timm:test_resnet/{root}/teacher.safetensors --dad-views 2 '
        '--seed 3 --crop-pct 0.9 --interpolation bilinear --shard-size 5 -b 4 --dad-keep-label --dad-store-logits 2 '
        '--dad-temperature 2 --dad-attack latent --dad-eps 0.3 --dad-gradient-vqgan demo --dad-micro-batch 2 '
        '--format codes',
        'answers': '--img-size 32 --dad-teacher demo --format wds --reinforce 2 --reinforce-top-k 3 --aa rand-m5-n1 '
        '--scale 0.5 1 --mean 0.5 0.4 0.3 --dad-same-crop --mixup 0.8 --cutmix-minmax 0.2 0.8 --mixup-prob 0.9',
    }  # fmt: skip
    for name, own in flags.items():
        main(shlex.split(f'generate {shared} {own} --output {root / name}'))
    return root


class Hub:
    """The hub as far as ``push`` uses it: one repository, whose files are in a folder."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.calls = folder, []
        monkeypatch.setattr(upload, 'get_token', lambda: 'hf_token')
        for name in ('list_repo_files', 'create_repo', 'upload_folder'):
            monkeypatch.setattr(HfApi, name, getattr(self, name))
        monkeypatch.setattr(upload, 'hf_hub_download', lambda repo, path, repo_type: folder / path)

    def list_repo_files(self, repo, repo_type):
        self.calls.append(('list', repo, repo_type))
        if not self.folder.exists():
            error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
            Exception.__init__(error, 'no such repository')
            raise error
        return list(tree(self.folder))

    def create_repo(self, repo, repo_type, private, exist_ok):
        self.calls.append(('create', repo, repo_type, private))
        assert exist_ok
        self.folder.mkdir(exist_ok=True)
        return f'https://huggingface.co/{repo}'

    def upload_folder(self, repo_id, repo_type, folder_path, commit_message, allow_patterns=None, ignore_patterns=None):
        paths = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob('*') if path.is_file()]
        paths = list(filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        self.calls.append(('upload', repo_id, repo_type, sorted(paths)))
        for path in paths:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder_path / path, self.folder / path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return Hub(monkeypatch, tmp_path / 'remote')


@pytest.fixture
def no_hub(monkeypatch):
    """Nothing of the hub may be asked."""

    def refuse(*_, **__):
        raise AssertionError('the hub was asked')

    monkeypatch.setattr(upload, 'get_token', refuse)
    for name in ('list_repo_files', 'create_repo', 'upload_folder'):
        monkeypatch.setattr(HfApi, name, refuse)


def push(source, *flags):
    main(['push', str(source), *TOLD, *flags])


def refused(capsys, source, *flags):
    """The one line that it ends with."""
    with pytest.raises(SystemExit) as stop:
        push(source, *flags)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


# --- a set ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_the_set_and_its_card_and_asks_nobody(made, tmp_path, no_hub, capsys):
    (made / 'plain/notes.txt').write_text('a stranger')
    push(made / 'plain', '--dry-run', '--output', str(tmp_path / 'out'))
    (made / 'plain/notes.txt').unlink()
    assert capsys.readouterr().out.endswith('out contains what would be uploaded to ada/greys; nothing was uploaded\n')
    files = tree(tmp_path / 'out')
    files.pop('README.md')
    assert files == tree(made / 'plain')
    assert not [path for path in tmp_path.rglob('*') if path.is_symlink() or path.suffix == '.tmp']
    main(['verify', str(tmp_path / 'out')])


@pytest.mark.parametrize('name', ['plain', 'codes', 'answers', 'mapped'])
def test_the_card_says_what_the_set_is_in_the_hubs_own_data(made, tmp_path, no_hub, name):
    push(made / name, '--dry-run', '--output', str(tmp_path / 'out'))
    card, dad_set = DatasetCard.load(tmp_path / 'out/README.md'), DADSet(made / name)
    assert card.data.license == 'cc-by-4.0'
    assert card.data.task_categories == ['image-classification']
    assert card.data.size_categories == 'n<1K'
    assert 'timm-dad' in card.data.tags
    summary = dad_set.index['summary']
    size = sum(len(data) for data in tree(made / name).values())
    for said in (
        'CC BY 4.0 of Ada, public domain', f'| {size:,} in all, {summary["bytes_per_view"]:,.0f} a view',
        f'{summary["teacher_kept"]:.1%}', f'`{dad_set.settings["teacher"]["fingerprint"][:16]}`',
        f'`{dad_set.settings["vqgan"]["fingerprint"][:16]}`', f'{12 * dad_set.num_views} DAD views of 12 images',
    ):  # fmt: skip
        assert said in card.text
    assert str(made) not in card.text  # folders of the machine that made it


def test_the_commands_of_data_without_splits_and_names_say_so(made):
    dad_set = DADSet(made / 'plain')
    dad_set.settings['data'].update(split='', class_names=None)
    generate, train = generate_command(dad_set, 'out'), train_command(dad_set, 'out')
    assert "--split ''" in generate
    assert '--num-classes 4' in generate
    assert "--train-split '' --val-split ''" in train
    parse_args(shlex.split(train.replace('DIR', str(made / 'pictures')).replace(' out', f' {made / "plain"}'))[2:])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['plain', 'codes', 'answers', 'mapped'])
def test_the_commands_of_the_card_make_the_set_and_train_from_it(made, tmp_path, no_hub, monkeypatch, name):
    push(made / name, '--dry-run', '--output', str(tmp_path / 'out'))
    text = (tmp_path / 'out/README.md').read_text()
    generate, train = (next(line for line in text.splitlines() if line.startswith(f'timm-dad {word}'))
                       for word in ('generate', 'train'))  # fmt: skip
    here = {'DIR': str(made / 'pictures'), 'SPEC': 'demo'}
    here['class_map.txt'] = str(made / name / 'class_map.txt')
    assert ('class_map.txt' in generate, 'class_map.txt' in train) == (name == 'mapped',) * 2
    here['timm:test_resnet/teacher.safetensors'] = f'timm:test_resnet/{made}/teacher.safetensors'
    words = [here.get(word, word) for word in shlex.split(generate)[1:]]
    monkeypatch.chdir(tmp_path)
    main(words)
    assert_same_tree(tmp_path / name, tree(made / name))
    set_folder.cache_clear()
    put_repo(use_cache(monkeypatch, tmp_path / 'hub'), 'datasets', 'ada/greys', made / name)
    args = parse_args([here.get(word, word) for word in shlex.split(train)[2:]])
    assert args.dad_dir == 'hf://ada/greys'
    assert args.num_classes == 4


def test_an_upload_brings_every_file_and_the_index_last(made, hub, monkeypatch, tmp_path, capsys):
    push(made / 'plain')
    kinds = [call[0] for call in hub.calls]
    assert kinds == ['list', 'create', 'upload', 'upload']
    assert {call[1:3] for call in hub.calls} == {('ada/greys', 'dataset')}
    assert 'index.json' not in hub.calls[2][3]
    assert hub.calls[3][3] == ['index.json']
    assert 'use it with: timm-dad train --dad --dad-dir hf://ada/greys' in capsys.readouterr().out
    set_folder.cache_clear()
    put_repo(use_cache(monkeypatch, tmp_path / 'hub'), 'datasets', 'ada/greys', hub.folder)
    main(['verify', 'hf://ada/greys'])


def test_a_stopped_upload_goes_on_and_private_is_for_a_new_one(made, hub, capsys):
    push(made / 'plain', '--private')
    assert hub.calls[1] == ('create', 'ada/greys', 'dataset', True)
    (hub.folder / 'index.json').unlink()
    (hub.folder / '.gitattributes').write_text('of the hub')
    assert '--private is for a new repository' in refused(capsys, made / 'plain', '--private')
    push(made / 'plain')
    assert (hub.folder / 'index.json').exists()


def test_a_repository_of_something_else_is_left_alone(made, hub, capsys):
    hub.folder.mkdir()
    (hub.folder / 'thesis.tex').write_text('...')
    line = refused(capsys, made / 'plain')
    assert line.endswith('--repo ada/greys contains other files (thesis.tex): choose another one, or empty it')
    (hub.folder / 'thesis.tex').unlink()
    shutil.copy(made / 'codes/dad_set.json', hub.folder)
    assert 'contains another set (dad_set.json differs): choose another repository' in refused(capsys, made / 'plain')
    assert [call for call in hub.calls if call[0] != 'list'] == []


@pytest.mark.parametrize(
    ('damage', 'says'),
    [
        (lambda root: (root / 'index.json').unlink(), 'not finished: start the same timm-dad generate'),
        (lambda root: (root / 'class_map.txt').write_text('dog\n' * 9), r'altered: class_map.txt'),
        (lambda root: (root / 'shards/000000.tar').write_bytes(b''), r'truncated: shards/000000.tar and 12 more'),
    ],
)
def test_what_is_not_whole_is_not_uploaded(made, tmp_path, hub, capsys, damage, says):
    damage(shutil.copytree(made / 'plain', tmp_path / 'set'))
    assert says in refused(capsys, tmp_path / 'set')
    assert [call[0] for call in hub.calls] == ['list']


def test_a_path_out_of_the_set_is_refused(made, tmp_path, no_hub, capsys):
    root = shutil.copytree(made / 'plain', tmp_path / 'set')
    (tmp_path / 'secret').write_bytes(b'mine')
    index = read_json(root / 'index.json')
    index['files'].append(place_of('../secret', b'mine'))
    index['sha256'] = index_hash(index)
    (root / 'index.json').write_bytes(canonical_json(index) + b'\n')
    line = refused(capsys, root, '--dry-run', '--output', str(tmp_path / 'out'))
    assert "names a file outside its folder, '../secret'" in line
    assert not (tmp_path / 'out').exists()


def test_without_a_token_or_a_network_it_ends_before_it_compares(made, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(upload, 'get_token', lambda: None)
    assert 'there is no token for writing to the hub: log in with hf auth login' in refused(capsys, made / 'plain')
    monkeypatch.setattr(upload, 'get_token', lambda: 'hf_token')
    use_cache(monkeypatch, tmp_path)
    assert '--repo ada/greys: HF_HUB_OFFLINE is set' in refused(capsys, made / 'plain')


def test_a_set_of_the_cache_can_be_pushed_from_its_links(made, tmp_path, monkeypatch, hub):
    snapshot = put_repo(tmp_path / 'cache', 'datasets', 'ada/greys', made / 'plain')
    push(snapshot)
    (hub.folder / 'README.md').unlink()
    assert_same_tree(hub.folder, tree(made / 'plain'))


@pytest.mark.parametrize(
    ('count', 'name'),
    [(1, 'n<1K'), (999, 'n<1K'), (1000, '1K<n<10K'), (99_999, '10K<n<100K'), (1_281_167, '1M<n<10M'),
     (10**9, '1B<n<10B'), (10**12, 'n>1T'), (10**15, 'n>1T')],
)  # fmt: skip
def test_sizes_have_the_hubs_names(count, name):
    assert size_category(count) == name


# --- a student ------------------------------------------------------------------------------------------------------

STUDENTS = {
    'resnet': {'model': 'test_resnet.r160_in1k', 'img_size': 64, 'gp': 'max'},
    'vit': {'model': 'test_vit', 'input_size': [3, 64, 32], 'model_kwargs': {'qkv_bias': False}},
    'efficientnet': {'model': 'test_efficientnet', 'img_size': 64, 'bn_eps': 0.1},
}


def write_run(folder, data, *, ema=False, **flags):
    """A finished run of pictures in ``data``; returns its student, and that of the moving average."""
    flags = {'mean': MEAN, 'std': STD, 'interpolation': 'bilinear', 'crop_pct': 0.75, 'data_dir': str(data), **flags}
    kwargs = {'global_pool': flags.get('gp'), 'bn_eps': flags.get('bn_eps'), **flags.get('model_kwargs', {})}
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        students = [timm.create_model(flags['model'], num_classes=4, **kwargs).eval() for _ in range(2)]
    content = {'state_dict': students[0].state_dict(), 'epoch': 7, 'metric': 81.25}
    if ema:
        content['state_dict_ema'] = students[1].state_dict()
    torch.save(content, folder / 'model_best.pth.tar')
    (folder / 'args.yaml').write_text(yaml.safe_dump({'eval_metric': 'top1', 'train_split': 'train', **flags}))
    return students


@needs_new_timm
@pytest.mark.parametrize('name', STUDENTS)
def test_timm_loads_a_student_with_equal_logits_and_the_images_of_its_training(
    made, tmp_path, no_hub, monkeypatch, name
):
    student, _ = write_run(tmp_path / 'run', made / 'pictures', **STUDENTS[name])
    push(f'run:{tmp_path / "run"}', '--dry-run', '--output', str(tmp_path / 'out'))
    assert sorted(tree(tmp_path / 'out')) == ['README.md', 'config.json', 'model.safetensors']
    put_repo(use_cache(monkeypatch, tmp_path / 'hub'), 'models', 'ada/greys', tmp_path / 'out')
    size = tuple(STUDENTS[name].get('input_size', (3, 64, 64)))
    x = torch.randn(2, *size)
    for address in (f'local-dir:{tmp_path / "out"}', 'hf-hub:ada/greys'):
        model = timm.create_model(address, pretrained=True).eval()
        assert torch.equal(model(x), student(x))
        config = timm.data.resolve_model_data_config(model)
        assert config['input_size'] == size
        assert [*config['mean'], *config['std']] == MEAN + STD
        assert (config['interpolation'], config['crop_pct']) == ('bilinear', 0.75)
        assert model.pretrained_cfg['label_names'] == list(CLASSES)
        assert (model.pretrained_cfg['license'], model.pretrained_cfg['tag']) == ('cc-by-4.0', '')


@needs_new_timm
def test_the_moving_average_is_the_student_where_there_is_one_and_a_file_can_be_named(made, tmp_path, no_hub):
    _, average = write_run(tmp_path / 'run', made / 'pictures', ema=True, **STUDENTS['resnet'])
    (tmp_path / 'run/model_best.pth.tar').rename(tmp_path / 'run/last.pth.tar')
    push(f'run:{tmp_path / "run/last.pth.tar"}', '--dry-run', '--output', str(tmp_path / 'out'))
    found = load_file(tmp_path / 'out/model.safetensors')
    assert all(torch.equal(value, found[name]) for name, value in average.state_dict().items())


@needs_new_timm
def test_the_card_of_the_control_claims_no_dad_views(made, tmp_path, no_hub):
    """Flags of VQGAN and attack may come from a config; with ``--dad-view random`` they are not used."""
    dad = {'dad': True, 'dad_view': 'random', 'dad_vqgan': 'none-such', 'dad_attack': 'latent', 'dad_eps': 0.5}
    write_run(tmp_path / 'run', made / 'pictures', **STUDENTS['resnet'], **dad, dad_teacher='demo')
    push(f'run:{tmp_path / "run"}', '--dry-run', '--output', str(tmp_path / 'out'))
    text = ModelCard.load(tmp_path / 'out/README.md').text
    assert 'trained with distillation on two random views, without DAD views.' in text
    assert re.search(r'\| second view +\| random', text)
    assert not any(word in text for word in ('none-such', 'latent', 'arxiv'))


@needs_new_timm
def test_the_model_card_says_what_was_trained_in_the_hubs_own_data(made, tmp_path, no_hub):
    write_run(
        tmp_path / 'run', made / 'pictures', **STUDENTS['resnet'], epochs=30, dad=True, dad_dir=str(made / 'plain'),
        dad_teacher=f'probe:{made}/head.safetensors', dad_weight=0.5,
    )  # fmt: skip
    push(f'run:{tmp_path / "run"}', '--dry-run', '--output', str(tmp_path / 'out'))
    card = ModelCard.load(tmp_path / 'out/README.md')
    assert (card.data.license, card.data.library_name) == ('cc-by-4.0', 'timm')
    assert card.data.pipeline_tag == 'image-classification'
    assert 'knowledge-distillation' in card.data.tags
    for said in ('epochs 30', '`plain`', '`probe:head.safetensors`', 'weight 0.5', '81.25, epoch 7', '64 x 64',
                 'CC BY 4.0 of Ada, public domain', "create_model('hf-hub:ada/greys', pretrained=True)"):  # fmt: skip
        assert said in card.text
    assert str(made) not in card.text
    assert str(tmp_path) not in card.text


@needs_new_timm
def test_a_student_is_uploaded_as_a_model_and_again_as_a_new_version(made, tmp_path, hub, capsys):
    write_run(tmp_path / 'run', made / 'pictures', **STUDENTS['resnet'])
    for _ in range(2):
        push(f'run:{tmp_path / "run"}')
    uploads = [call[1:] for call in hub.calls if call[0] == 'upload']
    assert uploads == [('ada/greys', 'model', ['README.md', 'config.json', 'model.safetensors'])] * 2
    assert "timm.create_model('hf-hub:ada/greys', pretrained=True)" in capsys.readouterr().out


@needs_new_timm
@pytest.mark.parametrize('gone', [True, False])
def test_class_names_are_those_of_the_training_data_or_none(made, tmp_path, no_hub, caplog, gone):
    data = tmp_path / 'data' if gone else write_pictures(tmp_path / 'data', train=1)
    if not gone:
        shutil.rmtree(tmp_path / 'data/train/cat')  # other classes than it was trained on
    write_run(tmp_path / 'run', data, **STUDENTS['resnet'])
    push(f'run:{tmp_path / "run"}', '--dry-run', '--output', str(tmp_path / 'out'))
    assert 'the model gets no class names' in caplog.text
    assert 'label_names' not in read_json(tmp_path / 'out/config.json')


@needs_new_timm
def test_a_student_that_timm_would_make_otherwise_is_not_uploaded(made, tmp_path, hub, capsys, monkeypatch):
    write_run(tmp_path / 'run', made / 'pictures', **STUDENTS['resnet'])
    other = timm.create_model('test_resnet', num_classes=4)
    monkeypatch.setattr('timm_dad.commands.student.timm', SimpleNamespace(create_model=lambda *_, **__: other))
    assert 'builds a network with other logits' in refused(capsys, f'run:{tmp_path / "run"}')
    assert [call[0] for call in hub.calls] == ['list']


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path, no_hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_commands('sharing') == 5
    assert timm.create_model('local-dir:timm-student', pretrained=True).num_classes == 16


@pytest.mark.parametrize('flag', [['--output', 'out'], ['--dry-run'], ['--dry-run', '--output', 'out', '--private']])
def test_a_flag_without_effect_is_refused(made, no_hub, capsys, flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, made / 'plain', *flag)
    assert any(f'{name} ' in line for name in ('--output', '--dry-run', '--private'))
    assert list(Path().iterdir()) == []


def test_an_older_timm_pushes_no_student(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('timm_dad.commands.student.NEW_TIMM', False)
    write_run(tmp_path / 'run', made / 'pictures', **STUDENTS['resnet'])
    with pytest.raises(SystemExit) as stop:
        push(f'run:{tmp_path / "run"}', '--dry-run', '--output', str(tmp_path / 'out'))
    assert stop.value.code == 2
    assert 'in the layout of timm needs timm 1.0.31 or newer' in capsys.readouterr().err
