"""How fast a run is: images and FLOP a second, and what share of the device's peak that is."""

import math
import time
from typing import Any

import jax
from jax.extend import core

# FLOP/s of dense matrix products in bfloat16, of one device by its kind. NVIDIA prints the figure
# with sparsity, twice as high. Of other dtypes there is none here: what JAX computes float32 in
# depends on a precision.
# TPU: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e
# A100: "NVIDIA A100 Tensor Core GPU" data sheet, 312 TFLOP/s in all forms
# H100: "NVIDIA H100 Tensor Core GPU" data sheet, SXM 1,979, PCIe 1,513, NVL 1,671 with sparsity
# H200: "NVIDIA H200 Tensor Core GPU" data sheet, SXM 1,979, NVL 1,671 with sparsity
PEAKS = {
    "bfloat16": {
        "TPU v4": 275e12,
        **dict.fromkeys(("TPU v5 lite", "TPU v5e"), 197e12),
        **dict.fromkeys(("TPU v5", "TPU v5p"), 459e12),
        **dict.fromkeys(("TPU v6 lite", "TPU v6e"), 918e12),
        **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312e12),
        **dict.fromkeys(("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312e12),
        "NVIDIA H100 80GB HBM3": 989.5e12,
        "NVIDIA H100 PCIe": 756.5e12,
        "NVIDIA H100 NVL": 835.5e12,
        "NVIDIA H200": 989.5e12,
        "NVIDIA H200 NVL": 835.5e12,
    }
}


class Speed:
    """The clock of a run's steps, between laps and over all; compilation and evaluations stay out.

    Args:
        batch: images of a step, over all devices.
        peak: FLOP/s that all devices can reach, None where that isn't known.
        steps: that were timed before the run went on.
        seconds: that those took.
    """

    def __init__(self, batch: int, peak: float | None, steps: int = 0, seconds: float = 0.0):
        self.batch, self.peak = batch, peak
        self.flops = 0  # of a step, as soon as one is there
        self.laps = [steps, seconds]
        self._last: tuple[int, float] | None = None

    def begin(self, step: int, logs: Any) -> None:
        """Starts the clock when the first step, which compiles, is over; later calls do nothing."""
        if self._last is None:
            jax.block_until_ready(logs)
            self._last = step, time.monotonic()

    def lap(self, step: int) -> dict[str, float]:
        """What the steps since the last lap came to."""
        now = time.monotonic()
        steps, seconds = step - self._last[0], now - self._last[1]
        self.laps = [self.laps[0] + steps, self.laps[1] + seconds]
        self._last = (step, now)
        return self._rates(steps, seconds)

    def mean(self) -> dict[str, float]:
        """What all laps came to, rounded."""
        digits = {"images_per_second": 1, "flops_per_second": None, "share_of_peak": 4}
        return {k: round(v, digits[k]) for k, v in self._rates(*self.laps).items()}

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        rate = steps / max(seconds, 1e-9)
        found = {"images_per_second": rate * self.batch}
        if rate and self.flops:
            found["flops_per_second"] = rate * self.flops
            if self.peak:
                found["share_of_peak"] = rate * self.flops / self.peak
        return found

    def skip(self, seconds: float) -> None:
        """Leaves out some seconds in which no step was taken."""
        if self._last is not None:
            self._last = (self._last[0], self._last[1] + seconds)

    def pause(self) -> None:
        """Forgets the last lap: what follows it was no training."""
        self._last = None


def peak(mesh: Any, dtype: str) -> float | None:
    """FLOP/s of matrix products that the devices of a mesh can reach, None where it isn't known."""
    one = PEAKS.get(dtype, {}).get(mesh.devices.flat[0].device_kind)
    return one and one * mesh.size


def shown(values: dict[str, float]) -> str:
    """Speed for people: `120 images/s  3.4 TFLOP/s, 34 % of peak`."""
    text = f"{values['images_per_second']:.0f} images/s"
    if "flops_per_second" in values:
        text += f"  {_flops_text(values['flops_per_second'])}"
    if "share_of_peak" in values:
        text += f", {100 * values['share_of_peak']:.0f} % of peak"
    return text


def _flops_text(rate: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if rate < 999.95:
            return f"{rate:.1f} {unit}FLOP/s"
        rate /= 1000
    return f"{rate:.2f} PFLOP/s"


def matmul_flops(fn: Any, *args: Any) -> int:
    """FLOPs of all matrix products and convolutions of `fn(*args)`, loops multiplied out."""
    return traced_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def traced_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products and convolutions of what is traced already."""
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out = params["dimension_numbers"].rhs_spec[0]
            inner = math.prod(kernel) // kernel[out]
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif name == "cond":
            total += max(traced_flops(b.jaxpr) for b in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(traced_flops(j) for j in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The jaxprs that an equation runs."""
    values = [v for p in params.values() for v in (p if isinstance(p, tuple | list) else (p,))]
    closed = [v.jaxpr for v in values if isinstance(v, core.ClosedJaxpr)]
    return closed + [v for v in values if isinstance(v, core.Jaxpr)]
