"""GGUF headers, Hugging Face, shapes, memory need, synthetic models."""
