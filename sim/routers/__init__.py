"""Routers, one a file; importing the package registers them."""

from . import least_kv, least_requests, random_choice, round_robin

__all__ = ["least_kv", "least_requests", "random_choice", "round_robin"]
