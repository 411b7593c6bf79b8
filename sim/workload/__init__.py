"""When requests come and how long they are. Importing it registers arrival processes and length distributions."""

from . import arrivals, closed, lengths, replay
from .source import Source, make_source

__all__ = ["Source", "arrivals", "closed", "lengths", "make_source", "replay"]
