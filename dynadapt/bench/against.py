"""Training steps beside the same steps on PyTorch, each in a process of its own."""

import sys
from typing import Any

from dynadapt.bench import TIMM, Worker, interleaved, machine, milliseconds, ratio
from dynadapt.bench.forward import reference_of
from dynadapt.errors import ConfigError
from dynadapt.plans.machines import GIB

METHODS = ("linear", "lora", "iconformer", "full")
PRODUCT = "matrix product"
# Tokens of eight images, width and hidden width of ViT-B/16.
SIZES = (8 * 197, 768, 3072)

# Runs under another Python: AdamW on timm's model in eager mode, with each method at our defaults.
_STEP = f"""{TIMM}
import math, sys
from torch import nn
from torch.nn import functional as F
from dynadapt_bench import answer
name, method, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
class Lora(nn.Module):
    def __init__(self, host, rank=8):
        super().__init__()
        self.host, width = host, host.in_features
        self.a = nn.ParameterList([torch.randn(width, rank) / width**0.5 for _ in "qv"])
        self.b = nn.ParameterList([torch.zeros(rank, width) for _ in "qv"])
    def forward(self, x):
        q, v = (x @ a @ b for a, b in zip(self.a, self.b))
        return self.host(x) + torch.cat((q, torch.zeros_like(q), v), -1)
class Icon(nn.Module):
    def __init__(self, host, rank):
        super().__init__()
        self.host, width = host, host.fc1.in_features
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        self.dense = nn.Linear(rank, 9 * rank)
        for layer in (self.up, self.dense):
            nn.init.zeros_(layer.weight)
        self.dense.bias.data = torch.eye(9)[4].repeat(rank)
    def forward(self, x):
        h = F.relu(self.down(x))
        b, n, r = h.shape
        side = math.isqrt(n - 1)
        m = h[:, 1:].transpose(1, 2).reshape(b, r, side, side)
        taps = self.dense(F.layer_norm(m.mean((2, 3)), (r,))).reshape(b * r, 1, 3, 3)
        m = F.conv2d(m.reshape(1, b * r, side, side), taps, padding=1, groups=b * r)
        m = m.reshape(b, r, n - 1).transpose(1, 2)
        return self.host(x) + 0.1 * self.up(torch.cat((h[:, :1], m), 1))
network = timm.create_model(name, num_classes=10).train()
if method != "full":
    network.requires_grad_(False)
    network.get_classifier().requires_grad_(True)
if method == "lora":
    for module in list(network.modules()):
        if hasattr(module, "qkv"):
            module.qkv = Lora(module.qkv)
if method == "iconformer":
    for block in network.blocks:
        block.mlp = Icon(block.mlp, network.embed_dim // 12)
network.to(device)
optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
images = torch.randint(256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
labels = torch.randint(10, (batch,), device=device)
def call():
    loss = F.cross_entropy(network(images.float() / 127.5 - 1), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    wait()
answer(call)
"""
_OUR_STEP = """
import sys
import jax
from dynadapt.bench.step import step
from dynadapt_bench import answer
call, _ = step(sys.argv[1], sys.argv[2], int(sys.argv[3]))
answer(lambda: jax.block_until_ready(call()))
"""
_PRODUCT = f"""{TIMM}
import sys
from dynadapt_bench import answer
n, d, m = map(int, sys.argv[1:])
x, w = torch.randn(n, d, device=device), torch.randn(d, m, device=device)
answer(lambda: (x @ w, wait()))
"""
_OUR_PRODUCT = """
import sys
import jax
from dynadapt_bench import answer
n, d, m = map(int, sys.argv[1:])
x, w = (jax.random.normal(jax.random.key(0), s) for s in ((n, d), (d, m)))
product = jax.jit(lambda x, w: x @ w)
answer(lambda: jax.block_until_ready(product(x, w)))
"""


def run(
    reference: str, backbone: str, methods: list[str], batch: int, rounds: int
) -> dict[str, Any]:
    """Times whole training steps against PyTorch's, readings in turn.

    Args:
        reference: a Python that has torch and timm.
        backbone: one of `forward.REFERENCES`.
        methods: of `METHODS`, iConFormer on plain ViTs alone.
        batch: images of a step.
        rounds: readings of each.

    Returns:
        A row a method, after one of a plain matrix product: milliseconds, their ratio, seconds of
        the first call (which compiles ours) and the peak of resident memory in GiB.

    Raises:
        ConfigError: there is no reference of a backbone or a method.
        MachineError: a process ended.
    """
    other = reference_of(backbone)
    known = [m for m in METHODS if m != "iconformer" or backbone.startswith("vit")]
    for method in methods:
        if method not in known:
            raise ConfigError(
                f"there is no reference of {method!r} on {backbone}; choose of {', '.join(known)}"
            )
    sizes = list(map(str, SIZES))
    rows = [_row(dict(method=PRODUCT), _OUR_PRODUCT, sizes, reference, _PRODUCT, sizes, rounds)]
    for method in methods:
        ours, theirs = ([name, method, str(batch)] for name in (backbone, other))
        row = dict(method=method, backbone=backbone, batch=batch)
        rows.append(_row(row, _OUR_STEP, ours, reference, _STEP, theirs, rounds))
    return dict(machine=machine(), rows=rows)


def _row(
    row: dict[str, Any],
    code: str,
    given: list[str],
    reference: str,
    other: str,
    others: list[str],
    rounds: int,
) -> dict[str, Any]:
    """The row with readings of both processes."""
    workers = [Worker(sys.executable, code, *given)]
    try:
        workers.append(Worker(reference, other, *others))
        readings = interleaved([worker.ask for worker in workers], rounds)
        for before, worker, own in zip(("", "torch_"), workers, readings, strict=True):
            row[f"{before}ms"] = milliseconds(own)
            row[f"{before}first_s"] = round(worker.first, 2)
            row[f"{before}peak_gib"] = round(worker.peak() / GIB, 2)
    finally:
        for worker in workers:
            worker.stop()
    return row | dict(over_torch=ratio(*readings))
