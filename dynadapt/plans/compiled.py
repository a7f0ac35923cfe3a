"""What a compiled program says of itself: the collectives in its text."""

import math
import re
from collections import Counter

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_SHAPE = re.compile(r"\b(pred|bf16|f16|f32|f64|[su]\d+|f8\w*)\[([\d,]*)\]")
_KIND = re.compile(rf" ({'|'.join(COLLECTIVES)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


def collectives(text: str) -> dict[str, int]:
    """Bytes that each kind of collective yields in one run, the bodies of loops multiplied out.

    Args:
        text: a compiled program, `compiled.as_text()`.

    A TPU's compiler may write one collective several times, as the stages that run beside other
    work; these share a channel and count once.
    """
    parts, entry = _computations(text)
    found: dict[str, Counter] = {}
    channels: set[str] = set()

    def is_new(line: str) -> bool:
        channel = _CHANNEL.search(line)
        if not channel or channel[1] not in channels:
            channels.update(channel.groups() if channel else ())
            return True
        return False

    def total(name: str) -> Counter:
        if name not in found:
            found[name] = Counter()
            counted: Counter = Counter()
            for line in parts.get(name, ()):
                if (kind := _KIND.search(line)) and is_new(line):
                    counted[kind[1]] += _result_bytes(line, kind)
                trips = _trip_count(line, parts) if " while(" in line else 1
                for called in _CALLED.findall(line):
                    for callee in re.findall(r"[\w.\-]+", called):
                        for key, value in total(callee).items():
                            counted[key] += trips * value
            found[name] = counted
        return found[name]

    return {kind: total(entry)[kind] for kind in COLLECTIVES if total(entry)[kind]}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the first to run."""
    parts: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            parts[name].append(line)
    return parts, entry


def _result_bytes(line: str, kind: re.Match) -> int:
    """Bytes of what the instruction yields; a start also lists its operands, the first half."""
    shapes = _SHAPE.findall(line[: kind.start()].split("=", 1)[1])
    if kind[2] and kind[1] != "all-reduce" and len(shapes) > 1:
        shapes = shapes[len(shapes) // 2 :]
    return sum(
        math.prod(int(n) for n in dims.split(",") if n) * _bits(dtype) // 8
        for dtype, dims in shapes
    )


def _bits(dtype: str) -> int:
    return _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])


def _trip_count(line: str, parts: dict[str, list[str]]) -> int:
    """How often a loop runs: as noted beside it, or the largest constant of its condition."""
    if noted := _TRIPS.search(line):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    constants = re.findall(r"constant\((\d+)\)", "\n".join(parts.get(condition[1], ())))
    return max(map(int, constants), default=1)
