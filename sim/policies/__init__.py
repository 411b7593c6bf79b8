"""Batching policies, one a file; importing the package registers them."""

from . import naive, orca, sarathi, sglang, static, tgi, triton_dynamic, trtllm, vllm, vllm_v0

__all__ = ["naive", "orca", "sarathi", "sglang", "static", "tgi", "triton_dynamic", "trtllm", "vllm", "vllm_v0"]
