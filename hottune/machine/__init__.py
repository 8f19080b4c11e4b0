"""What this computer has: GPUs, processor, memory; VRAM sampling."""
