import logging
import os
import tempfile
import uuid

import pytest
import stores
import timm
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings
from torch import nn

from timm_dad.teachers.teacher import Teacher
from timm_dad.vqgan.model import VQGAN, VQGANConfig

# Caches of this session are its own; set before anything reads it, and inherited by the processes that tests start.
_caches = tempfile.TemporaryDirectory(prefix='timm_dad-tests-', ignore_cleanup_errors=True)
os.environ['TORCH_HOME'] = f'{_caches.name}/torch'

torch.set_num_threads(1)  # before the fixtures of modules, too: other threads, other last bits

NUM_CLASSES = 5
SIZE = 16
DDCONFIG = {
    'double_z': False,
    'z_channels': 4,
    'resolution': SIZE,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 32,
    'ch_mult': [1, 2],
    'num_res_blocks': 1,
    'attn_resolutions': [],
    'dropout': 0.0,
}

# No deadline: the machine may be busy. Derandomized: a red test stays red.
settings.register_profile('tests', deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile('tests')


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_accelerator_state():
    """Leave no state of Accelerate to the next test: it is shared by all of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def own_log_levels():
    """Leave no level of this project's loggers to the next test: each command sets its own."""
    loggers = [logging.getLogger(name) for name in ('train_dad', 'timm_dad')]
    yield
    for logger in loggers:
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def tf32():
    """TF32 is switched on, as training does; it is a switch of the process."""
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope='session')
def s3_address():
    """The address of an S3 server that runs as long as the tests do."""
    with stores.s3_server() as (address, _):
        yield address


@pytest.fixture
def bucket(s3_address, monkeypatch):
    """A new bucket of it, as a URL."""
    import s3fs

    for name, value in {
        'AWS_ENDPOINT_URL': s3_address, 'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test',
        'AWS_DEFAULT_REGION': 'us-east-1', 'AWS_EC2_METADATA_DISABLED': 'true',
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f'dad-{uuid.uuid4().hex}'
    s3fs.S3FileSystem().mkdir(name)
    yield f's3://{name}'
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def memory():
    """Stores in memory are empty."""
    stores.empty_stores()
    yield
    stores.empty_stores()


@pytest.fixture
def student():
    # timm's ResNets start with residual branches multiplied by zero, whose weights get no gradient.
    return timm.create_model('test_resnet', num_classes=NUM_CLASSES, zero_init_last=False)


@pytest.fixture
def teacher():
    """A teacher whose normalization (ImageNet's) and input size (24) are not the student's (0.5, 16)."""
    model = timm.create_model('test_efficientnet', num_classes=NUM_CLASSES)
    # An untrained network ends in features near zero: a large head gives logits of a few units and several labels.
    nn.init.normal_(model.get_classifier().weight, std=50.0)
    cfg = model.pretrained_cfg
    return Teacher(model, mean=cfg['mean'], std=cfg['std'], input_size=(24, 24), num_classes=NUM_CLASSES)


@pytest.fixture
def vqgan_config():
    return VQGANConfig(ddconfig=DDCONFIG, n_embed=32, embed_dim=4)


@pytest.fixture
def vqgan(vqgan_config):
    return _spread(VQGAN(vqgan_config)).eval()


def _spread(vqgan):
    # At initialization all latents fall on one or two codes and all codes decode to the same grey.
    with torch.no_grad():
        vqgan.quant_conv.weight.mul_(3)
        vqgan.quantize.embedding.weight.normal_()
        vqgan.decoder.conv_out.weight.mul_(1.5)
    return vqgan


@pytest.fixture
def x_pix():
    """Images ``[4, 3, 16, 16]`` with structure at several scales, range [0, 1]."""
    coarse = nn.functional.interpolate(torch.rand(4, 3, 3, 3), (SIZE, SIZE), mode='bilinear')
    return (0.7 * coarse + 0.3 * torch.rand(4, 3, SIZE, SIZE)).clamp(0, 1)
