"""A fit that several processes or machines share, on a cluster of Dask."""

from energyscape.distributed.cluster import fit, resume

__all__ = ["fit", "resume"]
