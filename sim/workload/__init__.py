"""When requests come and how long they are. Importing it registers arrival processes and length distributions."""

from . import arrivals, closed, lengthfile, lengths, profiles, replay
from .source import Source, make_source

__all__ = ["Source", "arrivals", "closed", "lengthfile", "lengths", "make_source", "profiles", "replay"]
