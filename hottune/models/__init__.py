"""GGUF headers, Hugging Face, shapes, memory need, synthetic and inflated models."""
