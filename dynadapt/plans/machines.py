"""Machines to compile for that need not be here: their names, memory and devices."""

import difflib
import os
from typing import Any

import jax
from jax.experimental import topologies

from dynadapt.errors import ConfigError, MachineError, UnknownName

GIB = 2**30
# Memory of one chip, GiB, by the first part of a topology's name.
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}

# Shapes of TPU slices, by their number of chips.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_DEEP = {
    **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"},
    **{512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"},
}
# Accelerators: the first part of their name, that of the topology, what their number counts of a
# chip (its cores, or itself), shapes.
_SLICES = (
    ("v4", "v4", 2, _DEEP),
    ("v5e", "v5e", 1, _FLAT),  # what some call a v5litepod
    ("v5litepod", "v5e", 1, _FLAT),
    ("v5p", "v5p", 2, _DEEP | {6144: "16x16x24"}),
    ("v6e", "v6e", 1, _FLAT),
)
# The topology of each accelerator that has one, such as `v5p-16`: `v5p:2x2x2`.
TOPOLOGIES = {
    f"{name}-{count * chips}": f"{kind}:{shape}"
    for name, kind, count, shapes in _SLICES
    for chips, shape in shapes.items()
}
_HOPPER = dict(
    cores=132, fpus=128, shared=233472, optin=232448, cache=52428800, clock=1.98, capability=9
)
# GPUs by their name: memory in bytes, bytes a second, and what XLA must know besides.
GPUS = {
    "h100": dict(memory=84978434048, bandwidth=3352320000000, **_HOPPER),
    "h200": dict(memory=150754820096, bandwidth=4800000000000, **_HOPPER),
}
_EXAMPLES = ("v5e:4x4", "v5litepod-16", "v5p-16", "v6e-16", "v4-16", *GPUS)


def memory(name: str) -> int | None:
    """Bytes of one chip of a machine, None where it is not known."""
    if name in GPUS:
        return GPUS[name]["memory"]
    size = MEMORY.get(TOPOLOGIES.get(name, name).split(":")[0])
    return size and size * GIB


def devices(name: str | None) -> list[Any]:
    """The devices here, or those of a machine that isn't here, to compile for.

    Args:
        name: an accelerator such as `v5litepod-16`, a topology such as `v5e:4x4`, or a GPU such as
            `h100`; None for the devices here.

    Raises:
        UnknownName: for a name that neither is known here nor to the compiler.
        MachineError: if the compiler for that machine is not installed.
    """
    if name is None:
        return jax.devices()
    if name in GPUS:
        return _gpu(name)
    topology = TOPOLOGIES.get(name, name)
    if ":" not in topology:
        raise _unknown(name)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is opened
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "compiling for TPUs needs libtpu: pip install 'dynadapt[tpu]'"
        ) from error
    given: dict[str, Any] = {}
    if topology.startswith("v4:"):
        given["chip_config_name"] = "megacore"  # a chip's two cores are one device, as they are run
    if topology.endswith(":1x1"):
        given["chips_per_host_bounds"] = (1, 1, 1)  # 2 x 2 otherwise
    try:
        found = topologies.get_topology_desc(topology_name=topology, platform="tpu", **given)
    except Exception as error:
        raise _unknown(name) from error
    return list(found.devices)


def _unknown(name: str) -> ConfigError:
    kind, _, count = name.rpartition("-")
    sizes = [int(n.removeprefix(f"{kind}-")) for n in TOPOLOGIES if n.rpartition("-")[0] == kind]
    if sizes and count.isdecimal() and len(count) < 10:
        near = sorted(sizes, key=lambda size: abs(size - int(count)))[:2]
        return UnknownName("topology", name, [f"{kind}-{size}" for size in near])
    known = dict.fromkeys((*TOPOLOGIES, *TOPOLOGIES.values(), *GPUS))
    return UnknownName("topology", name, difflib.get_close_matches(name, known) or _EXAMPLES)


def _gpu(name: str) -> list[Any]:
    chip = GPUS[name]
    # Device description, as XLA's target configuration wants it.
    target = f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
      shared_memory_per_core: {chip["shared"]} threads_per_core_limit: 2048
      core_count: {chip["cores"]} fpus_per_core: {chip["fpus"]}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      memory_bandwidth: {chip["bandwidth"]} l2_cache_size: {chip["cache"]}
      clock_rate_ghz: {chip["clock"]} device_memory_size: {chip["memory"]}
      shared_memory_per_block_optin: {chip["optin"]} registers_per_core_limit: 65536
      cuda_compute_capability {{ major: {chip["capability"]} minor: 0 }}
      registers_per_block_limit: 65536 }}
      platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 1 patch: 1 }}
      device_description_str: "NVIDIA {name.upper()}" """
    try:
        found = topologies.get_topology_desc(
            topology_name=name, platform="cuda", topology="1x1x1", target_config=target
        )
    except Exception as error:
        raise MachineError(
            f"compiling for {name} needs the CUDA plugin: pip install 'dynadapt[cuda13]'"
        ) from error
    return list(found.devices)
