"""hottune: find, prove and serve the fastest way to run an MoE model that does not fit in VRAM."""

__version__ = "0.1.0"

__all__ = ["__version__"]
