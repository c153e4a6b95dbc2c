import copy
import pickle

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from clips import write_clip_folder
from timm.layers import StdConv2d
from torch import nn

from timm_dad.frozen.prepare import PRECISIONS, prepare_frozen, round_weights
from timm_dad.method.attack import AttackConfig, ascend
from timm_dad.method.augment import DADAugment
from timm_dad.method.loss import teacher_cross_entropy
from timm_dad.teachers.ensemble import TeacherEnsemble
from timm_dad.teachers.heads import LinearHead, create_head_teacher
from timm_dad.teachers.teacher import Teacher, ZeroShotClassifier, create_open_clip_teacher

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
TARGET = torch.tensor([0, 1, 2, 3])


@pytest.fixture(autouse=True)
def fresh_accelerate():
    # Accelerate keeps one state a process: a test must neither find nor leave one.
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def record_conv_dtypes(*modules):
    """Set of the dtypes that convolutions inside ``modules`` return, filled by later calls."""
    dtypes = set()
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _module, _args, output: dtypes.add(output.dtype))
    return dtypes


def augment_of(teacher, vqgan):
    # A large budget, and no randomness: what differs comes from the precision.
    attack = AttackConfig(eps=1.0, step_size=1.0, random_start=0.0)
    return DADAugment(teacher, vqgan, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), attack=attack)


def test_the_precisions_are_those_of_the_issue():
    assert set(PRECISIONS) == set(DTYPES)


@pytest.mark.parametrize('precision', DTYPES)
def test_networks_run_in_the_precision_and_return_fp32(teacher, vqgan, x_pix, precision):
    expected_logits, expected_z, expected_x = teacher(x_pix), vqgan.encode(x_pix), vqgan.decode(torch.ones(1, 4, 8, 8))
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    inside = record_conv_dtypes(teacher.model, vqgan.encoder, vqgan.decoder)
    logits, z, decoded = teacher(x_pix), vqgan.encode(x_pix), vqgan.decode(torch.ones(1, 4, 8, 8))
    assert inside == {DTYPES[precision]}
    for result, expected in ((logits, expected_logits), (z, expected_z), (decoded, expected_x)):
        assert result.dtype == torch.float32
        if precision == 'fp32':
            torch.testing.assert_close(result, expected)  # channels_last sums in another order
        else:
            # bf16 holds 8 bits; the untrained networks end in differences of large numbers.
            error = (result - expected).norm() / expected.norm()
            assert 0 < error < 0.1
    assert vqgan(x_pix).dtype == torch.float32


@pytest.mark.parametrize('precision', DTYPES)
def test_norms_codebook_and_what_is_around_the_networks_stay_in_fp32(teacher, vqgan, precision):
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    for module in (*teacher.modules(), *vqgan.modules()):
        rounded = isinstance(module, nn.Linear | nn.Conv2d) and module not in (vqgan.quant_conv, vqgan.post_quant_conv)
        expected = DTYPES[precision] if rounded else torch.float32
        assert {parameter.dtype for parameter in module.parameters(recurse=False)} <= {expected}


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_around_the_networks_all_is_fp32(teacher, vqgan, x_pix, precision):
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    around = record_conv_dtypes(vqgan.quant_conv, vqgan.post_quant_conv)
    seen = []
    teacher.model.register_forward_pre_hook(lambda _module, args: seen.append(args[0].dtype))
    vqgan(x_pix)
    teacher(x_pix)
    assert around == {torch.float32}
    assert seen == [torch.float32]


@pytest.mark.parametrize('precision', DTYPES)
def test_teacher_and_vqgan_are_frozen(teacher, vqgan, precision):
    teacher.requires_grad_(True)
    vqgan.train().requires_grad_(True)
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    for module in (teacher, vqgan):
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(part.training for part in module.modules())


def test_a_teacher_alone_is_prepared(teacher, x_pix):
    prepare_frozen(teacher, precision='bf16')
    inside = record_conv_dtypes(teacher.model)
    assert teacher(x_pix).dtype == torch.float32
    assert inside == {torch.bfloat16}


def test_fp32_is_the_default(teacher, vqgan, x_pix):
    prepare_frozen(teacher, vqgan)
    inside = record_conv_dtypes(teacher.model, vqgan)
    teacher(vqgan(x_pix))
    assert inside == {torch.float32}


def test_names_of_weights_stay(teacher, vqgan):
    before = [*teacher.state_dict(), *vqgan.state_dict()]
    prepare_frozen(teacher, vqgan, 'bf16')
    assert [*teacher.state_dict(), *vqgan.state_dict()] == before


@pytest.mark.parametrize('shared', ['no', 'bf16'])
@pytest.mark.parametrize('precision', DTYPES)
def test_an_accelerator_of_the_process_keeps_its_precision(teacher, vqgan, x_pix, shared, precision):
    accelerator = Accelerator(mixed_precision=shared, cpu=True)
    student = accelerator.prepare_model(nn.Sequential(nn.Conv2d(3, 4, 3)))
    prepare_frozen(teacher, vqgan, precision)
    assert accelerator.mixed_precision == shared
    assert AcceleratorState().mixed_precision == shared
    expected = torch.bfloat16 if shared == 'bf16' else torch.float32
    for network in (student, accelerator.prepare_model(nn.Sequential(nn.Conv2d(3, 4, 3)))):
        inside = record_conv_dtypes(network)
        network(x_pix)
        assert inside == {expected}
    with accelerator.autocast():
        assert nn.functional.conv2d(x_pix, torch.ones(1, 3, 3, 3)).dtype == expected


@pytest.mark.parametrize('later', ['no', 'bf16'])
@pytest.mark.parametrize('precision', DTYPES)
def test_an_accelerator_of_another_precision_can_come_later(teacher, vqgan, x_pix, precision, later):
    prepare_frozen(teacher, vqgan, precision)
    accelerator = Accelerator(mixed_precision=later)
    assert accelerator.mixed_precision == later
    inside = record_conv_dtypes(teacher.model)
    teacher(x_pix)
    assert inside == {DTYPES[precision]}


def test_nothing_of_the_process_is_initialized(teacher, vqgan, monkeypatch):
    # The environment that torchrun gives: an Accelerator would initialize a process group.
    torchrun = {'RANK': 0, 'WORLD_SIZE': 1, 'LOCAL_RANK': 0, 'MASTER_ADDR': 'localhost', 'MASTER_PORT': 0}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    prepare_frozen(teacher, vqgan, 'bf16')
    assert not torch.distributed.is_initialized()
    assert PartialState._shared_state == AcceleratorState._shared_state == GradientState._shared_state == {}


@pytest.mark.parametrize(('environment', 'index'), [({}, 2), ({'LOCAL_RANK': '1'}, 1), ({'LOCAL_RANK': '5'}, 1)])
def test_without_an_accelerator_they_go_to_the_gpu_of_the_process(teacher, monkeypatch, environment, index):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, value in {'is_available': True, 'device_count': 4, 'current_device': 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    moved = []
    monkeypatch.setattr(Teacher, 'to', lambda self, device: moved.append(device))
    prepare_frozen(teacher)
    assert moved == [torch.device('cuda', index)]


def test_an_accelerator_decides_where_they_go(teacher, monkeypatch):
    Accelerator(cpu=True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    prepare_frozen(teacher)
    assert teacher.norm.mean.device.type == 'cpu'


def test_an_error_inside_leaves_the_accelerator_of_the_process(teacher):
    accelerator = Accelerator(mixed_precision='bf16', cpu=True)
    with pytest.raises(ValueError, match='precision must be one of'):
        prepare_frozen(teacher, precision='int8')
    teacher.model = None
    with pytest.raises(AttributeError):
        prepare_frozen(teacher, precision='fp16')
    assert AcceleratorState().mixed_precision == accelerator.mixed_precision == 'bf16'


def test_a_second_precision_is_refused(teacher, vqgan):
    prepare_frozen(teacher, precision='bf16')
    for again in (teacher, TeacherEnsemble([teacher])):
        with pytest.raises(ValueError, match='precision fp32: the networks are already prepared in bf16; load them'):
            prepare_frozen(again, vqgan, precision='fp32')


@pytest.mark.parametrize('precision', DTYPES)
def test_what_is_prepared_twice_is_prepared_once(teacher, vqgan, x_pix, precision):
    prepare_frozen(teacher, vqgan, precision)
    expected, forward = teacher(x_pix), teacher.model.forward
    prepare_frozen(teacher, vqgan, precision)
    assert teacher.model.forward is forward
    assert torch.equal(teacher(x_pix), expected)


@pytest.mark.parametrize('precision', DTYPES)
@pytest.mark.parametrize('again', [copy.deepcopy, lambda teacher: pickle.loads(pickle.dumps(teacher))])
def test_copies_and_pickles_run_their_own_weights_in_the_precision(teacher, x_pix, precision, again):
    prepare_frozen(teacher, precision=precision)
    expected, other = teacher(x_pix), again(teacher)
    inside = record_conv_dtypes(other.model)
    assert torch.equal(other(x_pix), expected)
    assert inside == {DTYPES[precision]}
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(other(x_pix), torch.zeros_like(expected))
    assert torch.equal(teacher(x_pix), expected)


@pytest.mark.parametrize('precision', DTYPES)
@pytest.mark.parametrize('callers', [torch.bfloat16, torch.float16])
def test_an_autocast_of_the_caller_does_not_reach_the_networks(teacher, vqgan, x_pix, precision, callers):
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    expected = teacher(x_pix)
    networks = record_conv_dtypes(teacher.model, vqgan.encoder, vqgan.decoder)
    with torch.autocast('cpu', dtype=callers):
        logits = teacher(x_pix)
        vqgan(x_pix)
        teacher.model(teacher.normalize(x_pix))  # what Teacher and VQGAN do about it is not needed
    assert networks == {DTYPES[precision]}
    assert torch.equal(logits, expected)


@pytest.mark.parametrize('callers', [torch.bfloat16, torch.float16])
def test_an_autocast_of_the_caller_does_not_reach_the_codes(teacher, vqgan, x_pix, callers):
    prepare_frozen(teacher, vqgan, 'bf16', torch.device('cpu'))
    expected = vqgan.encode_to_codes(x_pix)
    around = record_conv_dtypes(vqgan.quant_conv, vqgan.post_quant_conv)
    with torch.autocast('cpu', dtype=callers):
        codes = vqgan.encode_to_codes(x_pix)
        vqgan(x_pix)
    assert around == {torch.float32}
    assert torch.equal(codes, expected)


@pytest.mark.parametrize('precision', [None, *DTYPES])
def test_an_autocast_of_the_caller_changes_no_dad_view(teacher, vqgan, x_pix, precision):
    if precision:
        prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    augment = augment_of(teacher, vqgan)
    expected = augment.make_views(x_pix, TARGET)
    networks = record_conv_dtypes(teacher.model, vqgan.encoder, vqgan.decoder)
    around = record_conv_dtypes(vqgan.quant_conv, vqgan.post_quant_conv)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        views = augment.make_views(x_pix, TARGET)
        images, _ = augment((x_pix - 0.5) / 0.5, TARGET)
    assert networks == {DTYPES[precision or 'fp32']}
    assert around == {torch.float32}
    assert images.dtype == torch.float32
    for name in ('x0', 'x_adv', 'x_dad', 'dad_logits', 'kept'):
        assert torch.equal(getattr(views, name), getattr(expected, name)), name


@pytest.mark.parametrize('precision', DTYPES)
@pytest.mark.parametrize('scale', [1.0, 1e-8])
def test_the_gradient_of_the_attack_survives_the_precision(teacher, vqgan, x_pix, precision, scale):
    config = AttackConfig(eps=0.2, step_size=0.2, random_start=0.0)
    x_pix = 0.3 + 0.4 * x_pix  # away from 0 and 1: no step is clipped

    def attack():
        return ascend(lambda x: teacher_cross_entropy(teacher(x), TARGET) * scale, x_pix, config) - x_pix

    expected = attack()
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    delta = attack()
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((4,), 0.2), atol=1e-5, rtol=0)
    cosine = nn.functional.cosine_similarity(delta.flatten(1), expected.flatten(1))
    assert (cosine > 0.95).all()


def test_fp16_would_underflow_without_care(teacher, x_pix):
    # The rule above is no empty one: the plain gradient of the same loss is zero.
    prepare_frozen(teacher, precision='fp16', device=torch.device('cpu'))
    x_pix.requires_grad_(True)
    loss = teacher_cross_entropy(teacher(x_pix), TARGET).sum() * 1e-8
    (gradient,) = torch.autograd.grad(loss, x_pix)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize('precision', ['fp8', 'no', 'float16', ''])
def test_an_unknown_precision_is_refused(teacher, precision):
    with pytest.raises(ValueError, match=rf"precision must be one of \('fp32', 'bf16', 'fp16'\), got '{precision}'"):
        prepare_frozen(teacher, precision=precision)


def test_the_callers_gradient_accumulation_stays_as_it_was(teacher, vqgan):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    prepare_frozen(teacher, vqgan, 'bf16')
    assert accelerator.gradient_accumulation_steps == 4
    assert GradientState().num_steps == 4


def test_a_zero_shot_head_is_not_rounded(x_pix):
    # 1000 classes that differ in the third digit: in bf16 many would tie.
    text = nn.functional.normalize(torch.ones(64, 1000) + 0.01 * torch.randn(64, 1000), dim=0)
    visual = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 64))
    teacher = Teacher(
        ZeroShotClassifier(visual, text, 100.0), mean=[0.5] * 3, std=[0.5] * 3, input_size=(16, 16), num_classes=1000
    )
    prepare_frozen(teacher, None, 'bf16', torch.device('cpu'))
    logits = teacher(x_pix)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    assert all(len(row.unique()) > 900 for row in logits)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_weights_rounded_once_give_what_autocast_gives(teacher, vqgan, x_pix, precision):
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad(), torch.autocast('cpu', DTYPES[precision]):
        network_input = teacher.normalize(x_pix).contiguous(memory_format=torch.channels_last)
        for network in (teacher.model, vqgan.encoder):
            network.to(memory_format=torch.channels_last)
        expected = teacher.model(network_input), vqgan.encoder(2 * x_pix - 1)
    prepare_frozen(teacher, vqgan, precision, torch.device('cpu'))
    with torch.no_grad():
        found = teacher.model(network_input), vqgan.encoder(2 * x_pix - 1)
    for own, other in zip(found, expected, strict=True):
        assert torch.equal(own, other.float())
    rounded = {
        type(m) for m in teacher.model.modules() for p in m.parameters(recurse=False) if p.dtype == DTYPES[precision]
    }
    assert rounded <= {nn.Linear, nn.Conv2d}
    assert rounded
    assert vqgan.codebook.dtype == vqgan.quant_conv.weight.dtype == torch.float32
    assert vqgan.decode(z).dtype == torch.float32


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_a_layer_that_computes_something_of_its_weights_is_not_rounded(x_pix, precision):
    network = nn.Sequential(StdConv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    with torch.no_grad(), torch.autocast('cpu', DTYPES[precision]):
        expected = network(x_pix)
        round_weights(network, DTYPES[precision])
        assert torch.equal(network(x_pix), expected)
    assert [layer.weight.dtype for layer in network] == [torch.float32, DTYPES[precision]]


# Every kind of teacher.


@pytest.fixture
def make_teacher(teacher, tmp_path):
    """Teachers of 5 classes by kind, whose logits are a few units."""
    write_clip_folder(tmp_path / 'clip')
    spec = f'open_clip:local-dir:{tmp_path / "clip"}'
    head = LinearHead(weight=torch.randn(5, 16) * 5, bias=torch.randn(5), tower=spec)

    def zero_shot():
        return create_open_clip_teacher(spec.removeprefix('open_clip:'), list('abcde'))

    def tuned():
        visual = {
            name: value + 0.01 * torch.randn_like(value)
            for name, value in zero_shot().model.visual.state_dict().items()
        }
        return create_head_teacher(LinearHead(weight=head.weight, bias=head.bias, visual=visual), spec, 5)

    def probe():
        return create_head_teacher(head, spec, 5)

    def ensemble():
        return TeacherEnsemble([copy.deepcopy(teacher), probe(), zero_shot()], temperature=4.0)

    kinds = {'timm': lambda: teacher, 'zero-shot': zero_shot, 'probe': probe, 'tuned': tuned, 'ensemble': ensemble}
    return lambda kind: kinds[kind]()


@pytest.mark.parametrize('precision', DTYPES)
@pytest.mark.parametrize('kind', ['timm', 'zero-shot', 'probe', 'tuned', 'ensemble'])
def test_logits_and_gradients_of_every_kind_are_close_to_fp32(make_teacher, x_pix, kind, precision):
    teacher = make_teacher(kind)

    def run():
        x = x_pix.clone().requires_grad_(True)
        logits = teacher(x)
        (gradient,) = torch.autograd.grad(teacher_cross_entropy(logits, TARGET).sum(), x)
        return logits.detach(), gradient

    expected, expected_gradient = run()
    prepare_frozen(teacher, precision=precision, device=torch.device('cpu'))
    logits, gradient = run()
    assert logits.dtype == gradient.dtype == torch.float32
    if precision == 'fp32':
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-3)
        return
    assert 0 < (logits - expected).norm() < 0.03 * expected.norm()
    cosine = nn.functional.cosine_similarity(gradient.flatten(1), expected_gradient.flatten(1))
    assert (cosine > 0.999).all()


@pytest.mark.parametrize('kind', ['probe', 'tuned'])
def test_a_linear_head_is_not_rounded(make_teacher, x_pix, kind):
    teacher = make_teacher(kind)
    weight = teacher.model.head.weight.clone()
    prepare_frozen(teacher, None, 'bf16', torch.device('cpu'))
    assert torch.equal(teacher.model.head.weight, weight)
    assert {p.dtype for m in teacher.model.visual.modules() if isinstance(m, nn.Linear) for p in m.parameters()} == {
        torch.bfloat16
    }
    logits = teacher(x_pix)
    assert not torch.equal(logits, logits.bfloat16().float())


def test_members_of_a_prepared_ensemble_can_be_used_alone(make_teacher, x_pix):
    ensemble = make_teacher('ensemble')
    prepare_frozen(ensemble, precision='bf16')
    soft = [(member(x_pix) / 4).softmax(dim=-1) for member in ensemble.teachers]
    torch.testing.assert_close((ensemble(x_pix) / 4).softmax(dim=-1), sum(soft) / 3)
