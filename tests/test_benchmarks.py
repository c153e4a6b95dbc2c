import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def run(script, *flags):
    device = () if script in ('start_up.py', 'large_set.py', 'cpu_tries.py') else ('--device', 'cpu')  # of CPUs alone
    command = [sys.executable, str(FOLDER / script), '--quick', '--threads', '1', *device, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def released_and_ours(vqgan, teacher, student, quantizer='lookup'):
    from released import Released

    from timm_dad import AttackConfig, DADAugment, prepare_frozen

    released = Released(vqgan, teacher, student, quantizer=quantizer, random_start=1.0)
    prepare_frozen(teacher, vqgan, device=torch.device('cpu'))
    norm = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    return released, DADAugment(teacher, vqgan, **norm, attack=AttackConfig(random_start=1.0))


@pytest.mark.parametrize('quantizer', ['lookup', 'one-hot'])
def test_released_makes_our_faithful_view(vqgan, teacher, student, x_pix, quantizer):
    released, augment = released_and_ours(vqgan, teacher, student, quantizer)
    target = torch.tensor([0, 1, 2, 3])
    torch.manual_seed(1)
    theirs, codes = released(x_pix, target)
    torch.manual_seed(1)
    ours = augment.make_views(x_pix, target)
    assert len(codes.unique()) > 3
    assert torch.equal(ours.dad_codes.flatten(), codes)
    torch.testing.assert_close(ours.x_dad, theirs.detach(), atol=1e-4, rtol=0)
    torch.manual_seed(2)  # another random start
    assert not torch.equal(released(x_pix, target)[0], theirs)


def test_released_computes_what_it_is_said_to(vqgan, teacher, student, x_pix):
    from released import Released

    calls = []
    released = Released(vqgan, teacher, student)
    parts = {'encoder': released.vqgan.encoder, 'decoder': released.vqgan.decoder, 'student': released.student}
    for name, module in {**parts, 'teacher': released.teacher.model}.items():
        module.register_forward_hook(lambda *_, name=name: calls.append((name, torch.is_grad_enabled())))
    teacher.model.register_full_backward_hook(lambda *_: calls.append(('teacher backward', True)))
    released(x_pix, torch.tensor([0, 1, 2, 3]))
    vqgan_pass = [('encoder', False), ('decoder', False)]
    assert calls == [
        *[('student', True), ('teacher', True), *vqgan_pass],
        *[('teacher', True), ('teacher backward', True), *vqgan_pass, ('teacher', False)],
    ]
    assert type(released.vqgan.encoder).forward.__module__ == 'taming.modules.diffusionmodules.model'
    assert type(released.vqgan.decoder).forward.__module__ == 'taming.modules.diffusionmodules.model'


def test_ratios_are_of_one_round():
    from harness import ratio

    # Beside other work all of a round is slower, which leaves its ratio alone.
    assert ratio([2.0, 20.0, 30.0], [1.0, 10.0, 10.0]) == (2.0, 2.0, 3.0)


@pytest.mark.slow
def test_the_peak_is_above_what_was_there():
    from harness import peak_bytes

    kept = torch.ones(2**24)  # 64 MiB
    before, peak = peak_bytes(lambda: torch.ones(2**25).sum(), torch.device('cpu'))
    assert 120 * 2**20 < peak - before < 160 * 2**20
    assert before > kept.nbytes


# Passes of one image: forward and backward of the student, of the teacher, and of the VQGAN's encoder and decoder.
UPDATES = {
    'plain cross-entropy': 'student 1 + 1',
    'AugMix + JSD': 'student 3 + 3',
    "timm's distillation": 'student 1 + 1, teacher 1',
    'PGD-1': 'student 2 + 2',
    'DAT': 'student 3 + 3, encoder 2, decoder 2',
    'DAD from Q(x)': 'student 2 + 2, teacher 3 + 1, encoder 2, decoder 2',
    'DAD from x': 'student 2 + 2, teacher 2 + 1, encoder 1, decoder 1',
    'DAD on latents': 'student 2 + 2, teacher 3 + 1, encoder 1, decoder 2 + 1',
    'DAD from a set': 'student 2 + 2, teacher 2',
    'DAD from a reinforced set': 'student 2 + 2',
}


def create_updates(folder):
    from online_cost import Updates
    from workload import build_student, build_teacher, build_vqgan, images

    from timm_dad import prepare_frozen

    student, teacher, vqgan = build_student('test_resnet'), build_teacher('test_resnet'), build_vqgan('tiny')
    prepare_frozen(teacher, vqgan, device=torch.device('cpu'))
    return Updates(student, teacher, vqgan, *images(2, 32, torch.device('cpu')), folder)


def test_updates_run_what_they_are_of(tmp_path):
    from online_cost import counted, parts_of
    from results import format_passes

    updates = create_updates(tmp_path)
    networks = parts_of(updates.student, updates.teacher, updates.vqgan)
    found = {}
    for name, loss_of in updates.losses().items():
        updates.student.zero_grad()
        with counted(networks) as images:
            loss_of().backward()
        assert updates.student.training, name
        assert all(parameter.grad.isfinite().all() for parameter in updates.student.parameters()), name
        found[name] = format_passes({part: [n / 2 for n in counts] for part, counts in images.items() if any(counts)})
    assert found == UPDATES


def test_stored_answers_are_the_teachers(tmp_path):
    updates = create_updates(tmp_path)
    answers, coded = updates.stored_answers(), updates.coded_target()
    assert torch.equal(answers.labels(coded), updates.target)
    asked = updates.teacher(updates.x_pix)
    for logits in answers.read(coded.repeat(2)):
        assert torch.equal(logits.argmax(1), asked.argmax(1))
        assert not torch.equal(logits[0], logits[1])


def test_attacks_of_the_student_raise_its_loss_inside_their_ball(tmp_path):
    from online_cost import DAT, PGD

    from timm_dad.method.loss import teacher_cross_entropy

    updates = create_updates(tmp_path)
    student = updates.student.eval()

    def loss(x_pix):
        return teacher_cross_entropy(student(updates.norm.normalize(x_pix)), updates.target).detach()

    for config, norm in ((PGD, float('inf')), (DAT, 2)):
        x_adv = updates.attack(updates.x_pix, config)
        student.eval()
        delta = (x_adv - updates.x_pix).flatten(1)
        assert (delta.norm(norm, dim=1) <= config.eps + 1e-6).all()
        assert (loss(x_adv) > loss(updates.x_pix)).all()


def test_table_of_updates():
    from results import update_table

    def entry(name, where, value):
        passes = {'student': [2.0, 2.0], 'teacher': [3.0, 1.0], 'encoder': [1.0, 0.0]}
        numbers = {'training': name, 'where': where, 'seconds': [2.0, 1.0, 3.0], 'weights': 2**20, 'above': 2**21}
        return {'value': value, 'low': value, 'high': value, 'numbers': {**numbers, 'passes': passes}}

    found = {
        'online cost, fp32, DAD, cpu': entry('DAD', 'cpu in fp32', 9.0),
        'online cost, bf16, DAD, cuda': entry('DAD', 'cuda in bf16', 2.0),
        'online cost, fp32, plain, cpu': entry('plain', 'cpu in fp32', 1.0),
        'step, fp32, attack from x, cpu': {},
    }
    passes = 'student 2 + 2, teacher 3 + 1, encoder 1'
    assert update_table(found).splitlines()[2:] == [
        f'| plain | 2 (1 to 3), cpu in fp32 | 1 x (1 to 1) | 1 + 2 | {passes} |',
        f'| DAD | 2 (1 to 3), cpu in fp32 | 9 x (9 to 9) | 1 + 2 | {passes} |',
        f'| DAD | 2 (1 to 3), cuda in bf16 | 2 x (2 to 2) | 1 + 2 | {passes} |',
    ]
    assert update_table({'step': {}}) == 'Not measured yet: `python benchmarks/online_cost.py`.'


TRIES = (
    'contiguous', 'weights prepacked for oneDNN', 'Winograd convolutions', 'blocks of 1 image', 'blocks of 2 images',
    '1 threads, an image each', 'inductor', 'inductor, freezing',
)  # fmt: skip
KERNELS = (
    '64 x 8', '64 x 8, gradient', 'attention', 'enlarging 16 x 8', 'attack from Q(x)', 'attack on latents',
)  # fmt: skip
AMX = 'with AMX' if torch.cpu._is_amx_tile_supported() else 'without AMX'
SCRIPTS = [
    ('generation.py', {f'generation, {p}, attack from {f}, cpu' for p in ('fp32', 'bf16') for f in ('Q(x)', 'x')}),
    ('step.py', {f'step, fp32, attack from {name}, cpu' for name in ('Q(x)', 'x')}),
    ('online_cost.py', {f'online cost, fp32, {name}, cpu' for name in UPDATES}),
    ('memory.py', {f'memory, fp32, attack from {name}, cpu' for name in ('Q(x)', 'x')}),
    ('nearest_code.py', {'nearest code, time, cpu', 'nearest code, memory, cpu'}),
    ('kernels.py', {f'kernels, {what}, bf16, cpu' for what in KERNELS}),
    ('generator.py', {'generator, speed, cpu', 'generator, waiting, cpu'}),
    ('large_set.py', {'large set, memory, generate', 'large set, memory, train', 'large set, open'}),
    ('reinforced.py', {'training, reinforced'}),
    ('start_up.py', {'start-up, import', 'start-up, train', 'start-up, demo'}),
    ('cpu_tries.py', {f'cpu tries, last level, {p}, {name}, {AMX}' for p in ('fp32', 'bf16') for name in TRIES}),
]


@pytest.mark.parametrize(('script', 'keys'), [pytest.param(*each, marks=pytest.mark.slow) for each in SCRIPTS])
def test_scripts_run(tmp_path, script, keys):
    path = tmp_path / 'results.json'
    run(script, '--results', str(path))
    results = json.loads(path.read_text())
    assert set(results) == keys
    for entry in results.values():
        assert 0 < entry['low'] <= entry['value'] <= entry['high']
        assert entry['command'].startswith(f'python benchmarks/{script} ')
        assert entry['versions']['torch'] == torch.__version__.split('+')[0]


@pytest.mark.slow
def test_more_classes_lose_less_and_all_of_them_nothing(tmp_path):
    run('reinforced.py', '--only', 'top-k', 'mixing', '--output', str(tmp_path / 'r.json'))
    measured = json.loads((tmp_path / 'r.json').read_text())
    for temperature in (1.0, 4.0):
        rows = [row for row in measured['top-k']['rows'] if row['temperature'] == temperature]
        errors = [row['gradient'] for row in rows]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-3 < errors[0]
        assert [row['bytes'] for row in rows] == [6 * row['k'] + 2 for row in rows]
    assert {row['answer'] for row in measured['mixing']['rows']} == {'mean of the two', 'the heavier one alone'}


@pytest.mark.slow
def test_curves(tmp_path):
    from PIL import Image

    run('scaling.py', '--output', str(tmp_path / 's.json'), '--plot', str(tmp_path / 's.png'))
    measured = json.loads((tmp_path / 's.json').read_text())
    assert set(measured) == {'batch', 'resolution', 'teacher', 'codebook', 'processes'}
    for sweep in measured.values():
        assert all(len(values) == len(sweep['x']) and min(values) > 0 for values in sweep['y'].values())
    assert Image.open(tmp_path / 's.png').size == (1320, 726)


@pytest.mark.slow
def test_projection_is_what_its_formula_says(tmp_path):
    from projection import gmacs_by_work
    from results import projection_tables

    run('projection.py', '--output', str(tmp_path / 'p.json'), '--efficiency', '0.5', '--tflops', '100')
    projection = json.loads((tmp_path / 'p.json').read_text())
    for name, gmacs in gmacs_by_work(projection['gmacs']).items():
        assert projection['hours'][name]['8'] == pytest.approx(1281167 * 2e9 * gmacs / (100e12 * 0.5 * 8) / 3600)
    assert '| projected | 1 GPU | 8 GPUs | 64 GPUs |' in projection_tables(projection)['projection']


@pytest.mark.slow
def test_costs_of_vqgans_are_those_of_the_docs_at_another_size(monkeypatch, capsys):
    from timm_dad.vqgan.presets import PRESETS
    from timm_dad.vqgan_training.distill import pass_macs

    monkeypatch.setattr(sys, 'argv', ['vqgans', '--quick', '--device', 'cpu', '--presets', 'imagenet-f16-1024'])
    importlib.import_module('vqgans').main()
    gmacs = pass_macs(PRESETS['imagenet-f16-1024'].config, 32) / 1e9
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith(f'| `imagenet-f16-1024` | 2 x 2 | 10 x 4 = 40 | 72.1 | {gmacs:.0f} | ')
    assert float(row.split('|')[6].split()[0]) > 0


@pytest.mark.parametrize('script', ['scaling', 'projection'])
def test_quick_does_not_write_over_measurements(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [script, '--quick'])
    with pytest.raises(SystemExit):
        importlib.import_module(script).main()
    assert '--quick needs --output' in capsys.readouterr().err


def test_tables_are_of_the_committed_results():
    from results import tables

    for path, named in tables().items():
        text = path.read_text()
        for name, table in named.items():
            assert f'<!-- table: {name} -->\n{table}\n<!-- end: {name} -->' in text, name


def test_a_figure_is_met_or_not():
    from results import figure_table, is_met

    entry = {'figure': 'a', 'against': 'b', 'value': 1.6, 'low': 1.5, 'high': 1.7, 'detail': ''}
    fast = {**entry, 'at_least': 1.5, 'at_most': None}
    assert is_met(fast) == is_met({**entry, 'at_least': None, 'at_most': 1.7}) == 'yes'
    assert is_met({**fast, 'value': 1.4}) == is_met({**entry, 'at_least': None, 'at_most': 1.5}) == '**no**'
    assert '| a | b | >= 1.50 x | 1.6 x (1.5 to 1.7) | yes |  |' in figure_table({'a': fast})


def test_a_table_needs_a_place(tmp_path):
    from results import fill

    (tmp_path / 'page.md').write_text('before\n<!-- table: x -->\nold\n<!-- end: x -->\nafter\n')
    fill(tmp_path / 'page.md', {'x': 'new'})
    assert (tmp_path / 'page.md').read_text() == 'before\n<!-- table: x -->\nnew\n<!-- end: x -->\nafter\n'
    with pytest.raises(ValueError, match='no place for the table y'):
        fill(tmp_path / 'page.md', {'y': 'new'})
