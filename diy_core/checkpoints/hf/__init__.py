"""Hugging Face directories, and the safetensors files in them."""
