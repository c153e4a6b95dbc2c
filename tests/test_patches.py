"""The patches apply, and do what they say."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import taming
import torch

from timm_dad.vqgan.load import load_vqgan

PATCHES = Path(__file__).parents[1] / 'patches'
SCRIPT = """
import sys, torch, yaml
from safetensors.torch import save_file
from taming.models.vqgan import VQModel

torch.manual_seed(0)
torch.set_num_threads(1)
ddconfig = dict(double_z=False, z_channels=4, resolution=16, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 2],
                num_res_blocks=1, attn_resolutions=[8], dropout=0.0)
model = VQModel(ddconfig, {'target': 'torch.nn.Identity'}, n_embed=32, embed_dim=4).eval()
model.quantize.embedding.weight.data.normal_()
x = torch.rand(2, 3, 16, 16) * 2 - 1
with torch.no_grad():
    output, codes = model(x)[0], model.encode(x)[2][2]
save_file(model.state_dict(), 'vqgan.safetensors')
save_file({'x': x, 'output': output, 'codes': codes}, 'expected.safetensors')
params = {'ddconfig': ddconfig, 'n_embed': 32, 'embed_dim': 4}
open('vqgan.yaml', 'w').write(yaml.safe_dump({'model': {'target': 'taming.models.vqgan.VQModel', 'params': params}}))
"""


@pytest.mark.slow
def test_patched_taming_imports_its_vqmodel_and_ours_equals_it(tmp_path):
    shutil.copytree(Path(next(iter(taming.__path__))), tmp_path / 'taming')
    patch = PATCHES / 'taming-transformers-0.0.1-lightning-2.patch'
    subprocess.run(['git', 'apply', '-p1', patch], cwd=tmp_path, check=True)
    environment = {'PYTHONPATH': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    subprocess.run([sys.executable, '-c', SCRIPT], cwd=tmp_path, env=environment, check=True, capture_output=True)
    from safetensors.torch import load_file

    expected = load_file(tmp_path / 'expected.safetensors')
    vqgan = load_vqgan(tmp_path / 'vqgan.safetensors')
    x_pix = (expected['x'] + 1) / 2
    assert torch.equal(vqgan.encode_to_codes(x_pix).flatten(), expected['codes'].flatten())
    torch.testing.assert_close(vqgan(x_pix), (expected['output'].clamp(-1, 1) + 1) / 2, atol=1e-5, rtol=0)
