"""The device's benchmark: hot-expert cache, static placements and a yardstick under the same VRAM ceilings.

`python -m bench.device --help` says what there is; docs/measuring.md says how it measures.
"""
