"""Split batch norm with one more split for the DAD view (AdvProp's auxiliary batch norm)."""

from timm.layers import SplitBatchNorm2d
from torch import nn


def add_splits(student: nn.Module, num_splits: int) -> bool:
    """Give the DAD view its own batch norm if the student has split batch norm (AdvProp's auxiliary one).

    Args:
        student: Changed in place: missing auxiliary batch norms are added as copies of the main one.
        num_splits: Number of splits in a batch, including the DAD view's.

    Returns:
        Whether the student has split batch norm.
    """
    modules = [module for module in student.modules() if isinstance(module, SplitBatchNorm2d)]
    for module in modules:
        while module.num_splits < num_splits:
            aux = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine)
            aux.load_state_dict({name: value for name, value in module.state_dict().items() if '.' not in name})
            module.aux_bn.append(aux.to(module.running_mean.device, module.running_mean.dtype))
            module.num_splits += 1
    return bool(modules)
