"""The student of a training as a torch.export or ONNX program, which needs neither timm nor timm-dad."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from timm_dad.commands.student import Student
from timm_dad.common.extras import require_extra

PT2, ONNX = 'model.pt2', 'model.onnx'
INPUT, OUTPUT = 'images', 'logits'
_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')

# Normalized images [N, 3, H, W] -> logits [N, K], on the CPU.
Network = Callable[[Tensor], Tensor]


def check_packages() -> None:
    """Raise ``ImportError`` if a package that ONNX needs is missing."""
    for name in _PACKAGES:
        require_extra(name, 'export')


def write_torch(student: Student, folder: Path) -> Network:
    """Write a torch.export program, with its metadata in the extra file ``config.json``; return it, read again."""
    path = folder / PT2
    torch.export.save(_trace(student), path, extra_files={'config.json': json.dumps(facts(student))})
    network: Network = torch.export.load(path).module()
    return network


def write_onnx(student: Student, folder: Path) -> Network:
    """Write ONNX, with its metadata in JSON; return what ONNX Runtime reads."""
    path = folder / ONNX
    program: Any = torch.onnx.export(
        _trace(student), (), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=({0: 'N'},),
        verbose=False,
    )  # fmt: skip
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts(student).items()})
    program.save(path)  # above 1.5 GB with the weights in a file beside it
    session = require_extra('onnxruntime', 'export').InferenceSession(str(path), providers=['CPUExecutionProvider'])

    def network(x_norm: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: x_norm.numpy()})[0])

    return network


def _trace(student: Student) -> torch.export.ExportedProgram:
    """Trace the student for any number of images of its size."""
    x = torch.zeros(2, *student.images['input_size'])
    with torch.no_grad():
        program = torch.export.export(student.model, (x,), dynamic_shapes=({0: torch.export.Dim('N')},), strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta.pop('stack_trace', None)  # it names folders of this machine
    return program


def facts(student: Student) -> dict[str, Any]:
    """Return the metadata of a program: model, task, image format, and classes if they are known."""
    task = 'multilabel' if student.flags.get('task') == 'multilabel' else 'classification'
    names = {'label_names': student.class_names} if student.class_names else {}
    return {'model': student.name, 'task': task, **student.images, **names}


def torch_use(student: Student) -> str:
    """Return lines of Python that classify pictures with the output of ``write_torch``."""
    return f"""import torch

model = torch.export.load('{PT2}').module()
{_normalized(student, 'torch.tensor', 'pixels.float()', 'permute')}
logits = model(x)  # [N, K]
"""


def onnx_use(student: Student) -> str:
    """Return lines of Python that classify pictures with the output of ``write_onnx``."""
    return f"""import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession('{ONNX}')
{_normalized(student, 'np.float32', 'np.float32(pixels)', 'transpose')}
logits = session.run(['{OUTPUT}'], {{'{INPUT}': x}})[0]  # [N, K]
"""


def _normalized(student: Student, array: str, pixels: str, permute: str) -> str:
    images = student.images
    mean, std = (list(images[name]) for name in ('mean', 'std'))
    height, width = images['input_size'][1:]
    return f"""mean, std = {array}({mean}), {array}({std})
x = (({pixels} / 255 - mean) / std).{permute}(0, 3, 1, 2)  # pixels: RGB, [N, {height}, {width}, 3], 0 to 255"""
