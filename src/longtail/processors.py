"""How many processors there are for this process."""

import os


def num_processors() -> int:
    """Those it may use, which on a cluster are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
