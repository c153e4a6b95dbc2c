"""IBQ (Shi et al. 2024, arXiv:2412.02692): taming's networks with codes chosen by the largest inner product.

The weights are from TencentARC/SEED-Voken (``src.IBQ.models.ibqgan.IBQ``).
"""

from torch import Tensor

from timm_dad.vqgan.nearest import likeliest_codes
from timm_dad.vqgan.quantizers import NearestQuantizer, mean_code


class InnerProductQuantizer(NearestQuantizer):
    """The code with the largest inner product: the most likely one under a softmax over projections on the codebook.

    The gradient is that of the mean code under this softmax, as in training (section 3.2). Neighbours are the nearest.
    """

    def search(self, rows: Tensor) -> Tensor:
        """Find the code with the largest inner product."""
        return likeliest_codes(rows, self.codebook.float())

    def soft(self, z: Tensor) -> Tensor:
        """Return the mean code."""
        return mean_code(z, self.codebook, self.codebook)
