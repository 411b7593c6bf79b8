"""Batching policies, one a file; importing the package registers them."""

from . import static, vllm

__all__ = ["static", "vllm"]
