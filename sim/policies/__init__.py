"""Batching policies, one a file; importing the package registers them."""

from . import naive, orca, sarathi, static, tgi, triton_dynamic, vllm, vllm_v0

__all__ = ["naive", "orca", "sarathi", "static", "tgi", "triton_dynamic", "vllm", "vllm_v0"]
