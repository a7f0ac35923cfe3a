"""The environment of a process with eight virtual devices."""

import os


def eight() -> dict[str, str]:
    """Threads enough: a device that waits for the others holds one, and a product asks for more.

    XLA starts `NPROC` of them, or one a device, which block each other once in a while.
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "32"}
    return {**os.environ, **flags, "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
