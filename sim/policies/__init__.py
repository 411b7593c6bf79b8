"""Batching policies, one a file; importing the package registers them."""

from . import static, tgi, trtllm, vllm

__all__ = ["static", "tgi", "trtllm", "vllm"]
