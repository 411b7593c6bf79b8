"""Batching policies, one a file; importing the package registers them."""

from . import sglang, static, tgi, trtllm, vllm

__all__ = ["sglang", "static", "tgi", "trtllm", "vllm"]
