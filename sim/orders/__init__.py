"""Orders of the queue, one a file; importing the package registers them."""

from . import edf, fair, fcfs, mlfq, priority, sjf, sjf_oracle

__all__ = ["edf", "fair", "fcfs", "mlfq", "priority", "sjf", "sjf_oracle"]
