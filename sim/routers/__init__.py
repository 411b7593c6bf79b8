"""Routers, one a file; importing the package registers them."""

from . import least_requests, round_robin

__all__ = ["least_requests", "round_robin"]
