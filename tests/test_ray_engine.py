"""``--engine ray`` on a real cluster of this machine: the bytes of a local run, whatever dies on the way."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import test_generate_command
from commands import error_line
from folders import picture
from test_generate import assert_same_tree, tree, write_images
from test_generate_command import flags

from timm_dad.commands.generate import main
from timm_dad.dad_sets.manifest import found_shards
from timm_dad.dad_sets.verify import verify

ray = pytest.importorskip('ray', reason='ray is not installed (pip install "timm-dad[ray]")')

from timm_dad.commands import generate_ray  # noqa: E402
from timm_dad.dad_sets import ray_engine  # noqa: E402
from timm_dad.dad_sets.ray_engine import Engine, connected  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # tasks of tests, which the cluster cannot import

files = test_generate_command.files  # data and models
LIMIT = 300  # seconds for each test
SMALL = 100 * 2**20  # bytes of the object store, which holds nothing of ours


@pytest.fixture(autouse=True)
def time_limit():
    """End a test that hangs, wherever it does."""

    def end(*_):
        raise TimeoutError(f'the test took more than {LIMIT} s')

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope='module')
def ray_environment():
    """Ray of its own: logs in a folder that goes, and no cluster of anybody else's."""
    with (
        tempfile.TemporaryDirectory(prefix='ray-', dir='/tmp', ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {
            'RAY_TMPDIR': folder,
            'RAY_ADDRESS': 'local',
            'RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES': str(SMALL),
            'RAY_USAGE_STATS_ENABLED': '0',
            'PYTHONPATH': os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')]),
        }.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope='module')
def cluster(ray_environment):
    """A cluster of two workers, to which this process is connected."""
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=SMALL)
        yield
    finally:
        ray.shutdown()


def many(files, output, *more, **changes):
    """A command line for 20 shards of 10 images, which take a while."""
    return flags(files, output, *more, **{'data_dir': files / 'many', 'shard_size': 10, 'dad_num_steps': 2, **changes})


def by_ray(argv):
    return main([*argv, '--engine', 'ray'])


@pytest.fixture(scope='module')
def local(files, tmp_path_factory):
    """What a local run makes of ``many``."""
    root = tmp_path_factory.mktemp('local')
    main(many(files, root))
    return tree(root)


def working():
    """Processes of this one's cluster that are at a task."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.is_running() and any('ray::_make_shards' in word for word in process.cmdline())
    ]


@pytest.mark.slow
def test_a_set_has_the_bytes_of_a_local_run_where_a_worker_is_killed(files, local, cluster, tmp_path, monkeypatch):
    killed = []

    def kill():
        """As soon as there is a shard, and more to come."""
        while not found_shards(tmp_path / 'set'):
            time.sleep(0.01)
        victim = working()[0]
        victim.kill()
        killed.append((victim, len(found_shards(tmp_path / 'set'))))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = by_ray(many(files, tmp_path / 'set'))
    killer.join(10)
    ((victim, done),) = killed
    assert done < 20
    assert not victim.is_running()
    assert_same_tree(tmp_path / 'set', local)
    assert list(verify(tmp_path / 'set')) == []
    monkeypatch.setattr(Engine, '_make', None)  # and nothing is left to do
    assert by_ray(many(files, tmp_path / 'set')) == summary


def die_once(request, device, claims):
    """A task whose process is gone in the middle of a shard, the first time that one is made."""
    from timm_dad.commands.generate_ray import _make_shards
    from timm_dad.dad_sets.maker import ShardMaker

    add = ShardMaker.add

    def dying(self, batch, pixels):
        add(self, batch, pixels)
        if len(self.images) > 4:  # of the 10 of a shard
            with contextlib.suppress(FileExistsError):
                Path('died').touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)

    ShardMaker.add = dying
    try:
        _make_shards(request, device, claims)
    finally:
        ShardMaker.add = add


@pytest.mark.slow
def test_a_worker_that_dies_in_the_middle_of_a_shard_is_gone_on_from(files, local, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate_ray, '_make_shards', die_once)
    by_ray(many(files, 'set'))
    assert Path('died').exists()
    assert_same_tree(tmp_path / 'set', local)


@pytest.mark.slow
@pytest.mark.parametrize(
    'given',
    [
        ('--reinforce', '2', '--dad-store-logits', '2', '--workers', '1'),
        ('--format', 'codes'),
        ('--dataset', 'wds/', '--data-dir', '{files}/wds', '--num-classes', '4', '--shard-size', '2'),
    ],
    ids=' '.join,
)
def test_all_that_a_local_run_makes_is_made(files, cluster, tmp_path, given):
    main(flags(files, tmp_path / 'local', *given))
    by_ray(flags(files, tmp_path / 'set', *given))
    assert_same_tree(tmp_path / 'set', tree(tmp_path / 'local'))


@pytest.mark.slow
def test_what_is_damaged_is_made_again(files, local, cluster, tmp_path):
    main(many(files, tmp_path / 'set'))
    shard = next((tmp_path / 'set').glob('shards/*.tar'))
    shard.write_bytes(b'')
    by_ray(many(files, tmp_path / 'set', '--repair'))
    assert_same_tree(tmp_path / 'set', local)


@pytest.mark.slow
def test_relative_paths_are_those_of_the_command(files, cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    paths = {
        'data_dir': 'data',
        'dad_teacher': 'timm:test_resnet/teacher1.safetensors',
        'dad_vqgan': 'vqgan1.safetensors',
    }
    by_ray(flags(files, os.path.relpath(tmp_path / 'set'), **paths))
    assert list(verify(tmp_path / 'set')) == []


# Errors


@pytest.mark.slow
def test_an_image_that_a_task_cannot_read_is_one_line(files, cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('timm_dad.data.datasets._MAX_CHECKED', 2)
    names = [f'{name}/{index:02}.png' for name in 'abcd' for index in range(50)]
    write_images(tmp_path / 'data', names)
    broken = tmp_path / 'data' / 'train' / names[105]  # none of those that are looked at before
    broken.write_bytes(b'x')
    message = error_line(capsys, main, many(files, tmp_path / 'set', '--engine', 'ray', data_dir=tmp_path / 'data'))
    assert f'{names[105]} does not decode' in message
    assert message.endswith(f'(on {os.uname().nodename})')
    picture(names[105]).save(broken)
    by_ray(many(files, tmp_path / 'set', data_dir=tmp_path / 'data'))


def fill_disk(request, device, claims):
    """A task on a machine whose disk is full."""
    from timm_dad.commands.generate_ray import _make_shards

    def full(file):
        raise OSError(errno.ENOSPC, 'No space left on device')

    fsync, os.fsync = os.fsync, full
    try:
        _make_shards(request, device, claims)
    finally:
        os.fsync = fsync


def die(request, device, claims):
    os.kill(os.getpid(), signal.SIGKILL)


def do_nothing(request, device, claims):
    """A task that makes its shards in another folder of this name."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('task', 'message'),
    [
        (fill_disk, 'cannot be written (No space left on device): provide the space'),
        (die, '--engine ray: a task was lost more often than Ray retries it'),
        (do_nothing, '--output must be a folder that all machines of the cluster see'),
    ],
)
def test_a_task_that_fails_is_one_line_and_gone_on_from(files, cluster, tmp_path, capsys, monkeypatch, task, message):
    argv = flags(files, tmp_path / 'set')
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, '_PATIENCE', 0)
        patch.setattr(generate_ray, '_make_shards', task)
        assert message in error_line(capsys, main, [*argv, '--engine', 'ray'])
    main(argv)
    assert list(verify(tmp_path / 'set')) == []


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match=r'does not exist: --output must be a folder that all machines .* \(on '):
        ray_engine._make_shards(do_nothing, b'', tmp_path / 'set', str(tmp_path / 'nowhere'), [0])


@pytest.mark.parametrize('address', ['127.0.0.1:1', 'ray://127.0.0.1:1', '127.0.0.1:99999', 'nonsense'])
def test_a_cluster_that_is_not_there_is_one_line(monkeypatch, address):
    monkeypatch.setattr(ray, 'is_initialized', lambda: False)
    monkeypatch.setattr(ray, 'init', lambda **_: (_ for _ in ()).throw(ValueError('Invalid address format')))
    monkeypatch.setenv('RAY_ADDRESS', address)
    with pytest.raises(
        ValueError, match=rf'--engine ray cannot connect \(RAY_ADDRESS: {address}\): .*RAY_ADDRESS=local'
    ):
        with connected():
            pass


# Processes of their own


def start(files, output, address='local'):
    """The command in a process, whose cluster it is where there is no other."""
    argv = [sys.executable, '-m', 'timm_dad', 'generate', *many(files, output), '--engine', 'ray']
    options = {'env': {**os.environ, 'RAY_ADDRESS': address}, 'stderr': subprocess.PIPE, 'text': True}
    ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored in what a shell starts in the background
    return subprocess.Popen(argv, **options, start_new_session=True, preexec_fn=ctrl_c)


def wait_for_a_shard(process, root):
    while process.poll() is None and not found_shards(root):
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()


@pytest.mark.slow
def test_ctrl_c_ends_all_tasks_and_says_how_to_go_on(files, local, ray_environment, tmp_path):
    process = start(files, tmp_path / 'set')
    try:
        wait_for_a_shard(process, tmp_path / 'set')
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert 'Interrupted. Resume with: timm-dad generate' in said
    assert 'Traceback' not in said
    assert psutil.wait_procs(children, timeout=20)[1] == []
    main(many(files, tmp_path / 'set'))
    assert_same_tree(tmp_path / 'set', local)


@pytest.mark.slow
def test_what_a_lost_machine_was_at_is_made_by_another_one(files, local, ray_environment, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, object_store_memory=SMALL, include_dashboard=False)
        lost = cluster.add_node(num_cpus=1, object_store_memory=SMALL)
        process = start(files, tmp_path / 'set', cluster.address)
        wait_for_a_shard(process, tmp_path / 'set')
        cluster.remove_node(lost, allow_graceful=False)
        _, said = process.communicate(timeout=LIMIT)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, said
    assert '8 tasks, 2 at a time' in said
    assert_same_tree(tmp_path / 'set', local)


# What a task gets


@pytest.mark.parametrize(
    ('device', 'nodes', 'places', 'asked'),
    [
        ('cuda', [{'CPU': 8.0}, {'CPU': 4.0}], 12, {'num_cpus': 1}),
        ('cpu', [{'CPU': 8.0, 'GPU': 2.0}], 8, {'num_cpus': 1}),
        ('cuda', [{'CPU': 4.0}, {'CPU': 96.0, 'GPU': 8.0}], 8, {'num_gpus': 1, 'num_cpus': 5}),
        ('cuda', [{'CPU': 6.0, 'GPU': 2.0}, {'CPU': 96.0, 'GPU': 8.0}], 10, {'num_gpus': 1, 'num_cpus': 3}),
        ('cuda', [{'CPU': 0.0}], 0, {'num_cpus': 1}),
    ],
)
def test_gpus_are_resources_and_none_is_idle_for_want_of_cpus(monkeypatch, device, nodes, places, asked):
    dead = {'Alive': False, 'Resources': {'CPU': 64.0, 'GPU': 8.0}}
    monkeypatch.setattr(ray, 'nodes', lambda: [dead, *({'Alive': True, 'Resources': node} for node in nodes)])
    found, options = Engine(device, workers=4)._places()
    assert found == places
    assert {name: options[name] for name in asked} == asked
    assert ('num_gpus' in options) == ('num_gpus' in asked)
    assert options.get('max_calls') == (0 if 'num_gpus' in asked else None)  # a process stays for the next task


@pytest.mark.parametrize(
    ('streams', 'count', 'places', 'tasks', 'largest'),
    [(False, 5000, 8, 625, 8), (False, 20, 2, 8, 3), (False, 3, 2, 3, 1), (True, 5000, 8, 8, 625), (True, 3, 8, 3, 1)],
)
def test_tasks_have_every_shard_once(streams, count, places, tasks, largest):
    groups = Engine('cpu', 0, streams=streams)._groups(range(count), places)
    assert sorted(shard for group in groups for shard in group) == list(range(count))
    assert (len(groups), max(map(len, groups))) == (tasks, largest)


@pytest.mark.parametrize(
    ('given', 'visible', 'expected'),
    [([], None, 'cpu'), (['3'], None, 'cuda:3'), (['5'], '4,5', 'cuda:1'), (['GPU-b'], 'GPU-a,GPU-b', 'cuda:1')],
)
def test_a_task_takes_the_gpu_that_it_was_given(monkeypatch, given, visible, expected):
    context = SimpleNamespace(get_accelerator_ids=lambda: {'GPU': given})
    monkeypatch.setattr(ray, 'get_runtime_context', lambda: context)
    if visible is None:
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    else:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert ray_engine._device() == expected


def see_gpus(request, device, claims):
    """A task that says which GPU it has, and how many it sees."""
    with open(request.decode(), 'a') as file:
        file.write(f'{device} {os.environ.get("CUDA_VISIBLE_DEVICES")}\n')


@pytest.mark.slow
def test_tasks_of_a_cluster_with_gpus_have_one_each(ray_environment, tmp_path):
    """GPUs of Ray's book-keeping: there are none here."""
    script = f"""
import sys
from pathlib import Path
import ray
from test_ray_engine import Engine, see_gpus
ray.init(num_cpus=2, num_gpus=2, object_store_memory={SMALL}, include_dashboard=False)
root = Path(sys.argv[1])
(root / 'dad_set.json').touch()
Engine('cuda', 4)._make(see_gpus, str(root / 'said').encode(), root, range(8), lambda: None)
"""
    env = {**os.environ, 'PYTHONPATH': f'{os.environ["PYTHONPATH"]}{os.pathsep}{Path(__file__).parent}'}
    env.pop('CUDA_VISIBLE_DEVICES', None)
    done = subprocess.run([sys.executable, '-c', script, str(tmp_path)], env=env, timeout=LIMIT, check=False)
    assert done.returncode == 0
    said = (tmp_path / 'said').read_text().split('\n')[:-1]
    assert len(said) == 8
    assert set(said) == {'cuda:0 None', 'cuda:1 None'}
