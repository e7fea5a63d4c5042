"""How a worker of the tests ends."""

import os
import sys

import torch.distributed as dist


def leave() -> None:
    """Ends this process, once all workers have come here.

    Without Python's own ending: gloo's thread may still hold a tensor of the last collective, takes Python's lock to
    let go of it, and aborts the process where Python is ending ("terminate called without an active exception").
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
