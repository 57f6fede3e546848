"""Ways to the nearest local attributes of many frames, and their memory.

> python benchmarks/codebooks.py mine 30000 384 1024

prints by how many bytes one of the ways raises the peak of memory.
"""

import sys

import torch
from timing import peak_memory

from speechbrain_wap.local_attributes import LocalAttributes


class Codebooks:
    """Three ways to the codes of the same frames.

    Arguments
    ---------
    shape : tuple of int
        N, D, K
    device : str
    """

    def __init__(self, shape, device="cpu"):
        num_frames, dim, num_attributes = shape
        random = torch.Generator().manual_seed(0)
        frames = torch.randn(num_frames, dim, generator=random)
        self.frames = frames.to(device)
        self.attributes = LocalAttributes(num_attributes, dim).to(device)
        self.attributes.initialise_(self.frames)
        self.vq = None
        try:
            from vector_quantize_pytorch import VectorQuantize
        except ImportError:
            return
        quantizer = VectorQuantize(
            dim, codebook_size=num_attributes, threshold_ema_dead_code=0
        )
        # the codebook alone: no straight-through gradient, no loss
        self.vq = quantizer.train().to(device)._codebook

    def assign(self):
        """The recipe's way, codes only."""
        return self.attributes.assign(self.frames)

    def mine(self):
        """The recipe's way."""
        self.attributes.update(self.frames, self.assign())

    def theirs(self):
        """The way of vector-quantize-pytorch."""
        with torch.no_grad():
            self.vq(self.frames[None])

    def cdist(self):
        """The plain way, codes only."""
        distances = torch.cdist(self.frames, self.attributes.codebook)
        return distances.argmin(dim=1)


def measure_growth(way, *shape):
    """Runs one of the ways; by how many bytes it raises the peak."""
    codebooks = Codebooks(shape)
    small = Codebooks((64, 8, 4))
    getattr(small, way)()  # what comes with a first call
    before = peak_memory()
    getattr(codebooks, way)()
    return peak_memory() - before


if __name__ == "__main__":
    print(measure_growth(sys.argv[1], *map(int, sys.argv[2:])))
