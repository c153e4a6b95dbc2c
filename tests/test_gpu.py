"""The whole step on a GPU, in every precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from timm_dad.frozen.prepare import prepare_frozen
from timm_dad.method.attack import AttackConfig
from timm_dad.method.augment import DADAugment
from timm_dad.method.task import DADTask
from timm_dad.vqgan import fused

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """fp32 is fp32: with TF32, which convolutions have by default, a code may differ."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('channels_last', [False, True])
def test_step_on_a_gpu(student, teacher, vqgan, precision, channels_last):
    device = torch.device('cuda')
    prepare_frozen(teacher, vqgan, precision, device)
    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    augment = DADAugment(teacher, vqgan, **norm)
    task = DADTask(student.to(device), teacher, augment, device=device, **norm)
    input = torch.randn(4, 3, 16, 16, device=device)
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    result = task(input, torch.arange(4, device=device))
    result['loss'].backward()
    assert torch.isfinite(result['loss'])
    assert all(parameter.grad is not None for parameter in student.parameters())
    views = augment.make_views(task.norm.to_pixels(input), torch.arange(4, device=device))
    assert (views.x_adv - views.x0).flatten(1).norm(dim=1).max() > 0.005


@pytest.mark.compiles
@pytest.mark.parametrize('attack_from', ['reconstruction', 'input'])
def test_compiled_views_on_a_gpu_are_those_of_eager(teacher, vqgan, x_pix, attack_from):
    device, target = torch.device('cuda'), torch.arange(4, device='cuda')
    norm, attack = {'mean': (0, 0, 0), 'std': (1, 1, 1)}, AttackConfig(random_start=0.0)
    augment = DADAugment(teacher.to(device), vqgan.to(device), **norm, attack=attack, attack_from=attack_from)
    expected = augment.make_views(x_pix.to(device), target)
    prepare_frozen(teacher, vqgan, 'fp32', device, compile=True)
    views = augment.make_views(x_pix.to(device), target)
    torch.testing.assert_close(views.x_adv, expected.x_adv, atol=1e-3, rtol=0)


@pytest.mark.compiles
def test_replayed_graphs_leave_the_results_of_earlier_calls_alone(teacher, vqgan, x_pix):
    device = torch.device('cuda')
    x_pix = x_pix.to(device)
    expected = [vqgan.to(device).reconstruct(x) for x in (x_pix, 1 - x_pix)]
    logits = [teacher.to(device)(x).detach() for x in (x_pix, 1 - x_pix)]
    prepare_frozen(teacher, vqgan, 'fp32', device, compile=True)
    with torch.no_grad():
        for _ in range(4):  # warming up, recording, replaying
            found = [vqgan.reconstruct(x) for x in (x_pix, 1 - x_pix)]
            of_teacher = [teacher(x) for x in (x_pix, 1 - x_pix)]
    for (x_vq, codes), (expected_x_vq, expected_codes) in zip(found, expected, strict=True):
        assert torch.equal(codes, expected_codes)
        torch.testing.assert_close(x_vq, expected_x_vq, atol=1e-3, rtol=0)
    torch.testing.assert_close(of_teacher, logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('silu', [True, False])
@pytest.mark.parametrize(('shape', 'groups'), [((2, 128, 33, 50), 32), ((3, 512, 7, 7), 32), ((1, 32, 300, 300), 4)])
def test_group_norm_in_one_step_is_that_of_torch(shape, groups, silu):
    norm = nn.GroupNorm(groups, shape[1], eps=1e-6, device='cuda').requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, dy = torch.randn(shape, device='cuda', requires_grad=True), torch.randn(shape, device='cuda')
    assert fused._fuses(norm, x)
    found = (fused.norm_silu if silu else fused.group_norm)(norm, x)
    expected = F.silu(norm(x)) if silu else norm(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found, expected = (torch.autograd.grad(y, x, dy)[0] for y in (found, expected))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.autocast('cuda', torch.bfloat16):
        found = fused.norm_silu(norm, x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), F.silu(norm(x.bfloat16().float())), atol=0.01, rtol=0.01)


@pytest.mark.parametrize('micro_batch', [0, 2])
def test_a_step_waits_for_nothing(student, teacher, vqgan, x_pix, micro_batch):
    device = torch.device('cuda')
    prepare_frozen(teacher, vqgan, 'fp32', device)
    norm = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    augment = DADAugment(teacher, vqgan, **norm, micro_batch=micro_batch)
    task = DADTask(student.to(device), teacher, augment, device=device, **norm)
    input, target = (x_pix * 2 - 1).to(device), torch.arange(4, device=device)
    task(input, target)['loss'].backward()  # the first batch is looked at
    torch.cuda.set_sync_debug_mode('error')
    try:
        task(input, target)['loss'].backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_views_fit_where_the_whole_batch_does_not(teacher, vqgan):
    device = torch.device('cuda')
    prepare_frozen(teacher, vqgan, 'fp32', device)
    augment = DADAugment(teacher, vqgan, mean=(0, 0, 0), std=(1, 1, 1))
    x_pix, target = torch.rand(64, 3, 128, 128, device=device), torch.zeros(64, dtype=torch.long, device=device)
    total = torch.cuda.get_device_properties(device).total_memory
    few = x_pix[:16], target[:16]
    augment.make_views(*few)  # once, for what choosing algorithms takes
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    augment.make_views(*few)
    room = before + 2 * (torch.cuda.max_memory_allocated() - before)  # not enough for all 64
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        assert augment.make_views(x_pix, target).x_dad.shape == x_pix.shape
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 0 < augment.chunked.size < 64
