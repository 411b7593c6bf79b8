"""Batching policies, one a file; importing the package registers them."""

from . import static, tgi, vllm

__all__ = ["static", "tgi", "vllm"]
