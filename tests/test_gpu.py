"""The whole step on a GPU, in every precision."""

import pytest
import torch

from timm_dad.augment import DADAugment
from timm_dad.frozen import prepare_frozen
from timm_dad.task import DADTask

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')]


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
    assert (views.x_adv - views.x_vq).flatten(1).norm(dim=1).max() > 0.005
