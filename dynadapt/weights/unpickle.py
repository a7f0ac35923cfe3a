"""Pickles of PyTorch, read with nothing in them ever run.

A pickle is a program. The machine here runs the part of that language that weights need: each
global is looked up in a table of this file, and whatever is not in the table is refused by name.
Nothing is imported, and what a pickle asks for in time and memory is bounded by constants.
"""

import dataclasses
import math
import pickletools
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from dynadapt.errors import UnsafeCheckpointError

MAX_PICKLE = 16 << 20  # bytes of a pickle; torch writes about 150 for a tensor
MAX_STEPS = 250_000  # opcodes of a pickle; torch writes about 18 for a tensor
MAX_GLOBALS = 1_000  # different globals of a pickle
MAX_NODES = 5_000_000  # values of the result when nothing in it is shared
MAX_DEPTH = 100  # levels of containers

STORAGES = {"Float": np.float32, "Double": np.float64, "Half": np.float16}
STORAGES |= {"Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8}
STORAGES |= {"Byte": np.uint8, "Bool": np.bool_, "BFloat16": ml_dtypes.bfloat16}
STORAGES = {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in STORAGES.items()}

# Classes that published checkpoints carry beside the weights. A name that ends with a dot stands
# for all that is below it. They become `Inert`.
INERT = {
    "argparse.Namespace": "options of the training command",
    "yacs.config.CfgNode": "configuration of the training",
    "easydict.EasyDict": "configuration of the training",
    "omegaconf.": "configuration of the training",
    "mmengine.config.": "configuration of the training",
    "mmcv.utils.config.": "configuration of the training",
    "typing.Any": "a type that omegaconf notes",
    "pathlib.": "a path among the options",
    "torch.device": "where a tensor was",
    "torch.Tensor": "the class of a rebuilt tensor",
    "torch.optim.": "an optimizer or schedule that was saved as a whole",
    "timm.scheduler.": "a schedule that was saved as a whole",
    "numpy.ndarray": "the class of a rebuilt array",
}
INERT |= {
    f"{module}.{name}": "a type as a value, such as the factory of a defaultdict"
    for module in ("builtins", "__builtin__")
    for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "object")
}
INERT |= {
    f"torch.{name}": "a dtype as a value"
    for name in "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
}
_BELOW = tuple(name for name in INERT if name.endswith("."))


class Inert:
    """What stands for an object of a class that weights do not need; it does nothing.

    Attributes:
        name: full name of the class, or of the function.
        args: what it was to be made from.
        state: what its attributes were to be.
        content: what was put into it, values or (key, value) pairs.
    """

    __slots__ = ("name", "args", "state", "content")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.content = name, args, None, None

    def __repr__(self) -> str:
        return f"Inert({self.name!r})"

    def extend(self, values: Iterable) -> None:
        """Takes what a pickle puts into a list or a dict."""
        self.content = self.content or []
        self.content.extend(values)


def _inert(name: str, *args: Any) -> Inert:
    return Inert(name, args)


@dataclasses.dataclass(slots=True, eq=False)
class _Global:
    """A function or class of the table: `build` makes a value from the arguments."""

    name: str
    build: Callable


class Damaged(Exception):
    """A reason why a file cannot be read."""


def require(condition: Any, reason: str) -> None:
    """Raises `Damaged` with the reason unless the condition holds."""
    if not condition:
        raise Damaged(reason)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


class Machine:
    """Runs one pickle; `storage(dtype, key, numel)` gives the bytes of a storage."""

    def __init__(self, storage: Callable[[np.dtype, str, int], np.ndarray]):
        self.storage = storage
        self.stack, self.marks, self.memo, self.copied = [], [], {}, 0
        self.table, self.globals = _table(self), {}

    def run(self, stream: BinaryIO) -> Any:
        """The object of the pickle that starts here; the stream is left behind its end."""
        for step, (opcode, value, _) in enumerate(pickletools.genops(stream)):
            require(step < MAX_STEPS, f"its pickle has more than {MAX_STEPS:,} steps")
            name = opcode.name
            if name in _CONSTANTS:
                wide = type(value) is int and value.bit_length() > 256
                require(not wide, "its pickle has an integer of more than 256 bits")
                self.stack.append(value)
            elif name in _MAKES:
                self.stack.append(_MAKES[name]())
            else:
                action = _ACTIONS.get(name)
                require(action, f"its pickle uses {name}, which weights never need")
                action(self, value)
        require(len(self.stack) == 1 and not self.marks, "its pickle is damaged")
        return _bounded(self.stack.pop())

    def pay(self, *values: Any) -> None:
        """Counts what is copied: a memoised value could be copied at every step."""
        for value in values:
            self.copied += len(value) * (1 if isinstance(value, str | bytes) else 64)
        require(self.copied < 2 * MAX_PICKLE, "its pickle copies too much")

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def above(self) -> list:
        """What is on the stack above the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def extend(self, values: list) -> None:
        target = self.stack[-1]
        if type(target) is set:
            return target.update(map(_key, values))
        require(type(target) in (list, Inert), "its pickle appends to what is no list")
        target.extend(values)

    def update(self, values: list) -> None:
        target, keys = self.stack[-1], values[::2]
        require(len(values) % 2 == 0, "its pickle has a key without a value")
        if type(target) is Inert:
            return target.extend(zip(keys, values[1::2], strict=True))
        require(type(target) is dict, "its pickle puts items into what is no dict")
        target.update(zip(map(_key, keys), values[1::2], strict=True))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def find(self, pair: str | None) -> None:
        """Puts the entry of the table on the stack that a pickle names."""
        names = pair.split(" ") if pair is not None else [self.stack.pop(-2), self.stack.pop()]
        require(all(type(n) is str for n in names), "its pickle has a global without a name")
        full = ".".join(names)
        if full not in self.globals:
            build = self.table.get(full)
            if build is None and (full in INERT or full.startswith(_BELOW)):
                build = partial(_inert, full)
            if build is None or len(names) != 2 or "." in names[1]:
                raise UnsafeCheckpointError(full)
            require(len(self.globals) < MAX_GLOBALS, "its pickle names too many classes")
            self.globals[full] = _Global(full, build)
        self.stack.append(self.globals[full])

    def call(self, _: Any) -> None:
        args, entry = self.stack.pop(), self.stack.pop()
        require(type(entry) is _Global and type(args) is tuple, "its pickle calls a value")
        self.stack.append(entry.build(*args))

    def new(self, _: Any) -> None:
        self.call(None)
        made = type(self.stack[-1])
        require(made is Inert, "its pickle makes an instance of what is no class")

    def build(self, _: Any) -> None:
        """Gives a state to the object on top of the stack."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Inert:
            target.state = state
        elif type(target) is np.ndarray and target.shape == (0,) and target.flags.owndata:
            _, shape, dtype, fortran, data = state
            require(type(dtype) is _Dtype and type(data) is bytes, "it has an array of objects")
            require(all(map(_count, shape)), "it has an array of a negative size")
            fits = math.prod(shape) * dtype.dtype.itemsize == len(data)
            require(fits and len(shape) <= 32, "the size of an array does not fit its shape")
            self.pay(data)
            target.__setstate__((1, shape, dtype.dtype, bool(fortran), data))
        elif type(target) is _Dtype:
            plain = state[1] in ("<", "|", "=") and not any(state[2:5])
            require(plain, "it has an array of an unusual dtype")
        else:  # attributes of an OrderedDict, such as the versions of modules: not needed
            require(type(target) is dict, "its pickle sets attributes of a value")

    def persistent(self, _: Any) -> None:
        """Puts a storage on the stack: (its bytes, dtype, number of values)."""
        kind, entry, key, _, numel, *view = self.stack.pop()
        known = type(entry) is _Global and entry.name in STORAGES and kind == "storage"
        require(known and type(key) is str and _count(numel), "a storage is not described right")
        require(view in ([], [None]), "it has a view of a storage, which torch gave up long ago")
        raw = self.storage(STORAGES[entry.name], key, numel)
        self.stack.append(_Storage(raw, STORAGES[entry.name], numel))


@dataclasses.dataclass(slots=True, eq=False)
class _Storage:
    raw: np.ndarray
    dtype: np.dtype
    numel: int

    def tensor(self, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
        """A read-only view of the storage; offset and strides count values."""
        counts = (offset, *shape, *strides)
        require(len(shape) == len(strides) <= 32, "a tensor has a wrong number of strides")
        require(all(map(_count, counts)), "a tensor has a negative or absurd size or stride")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        inside = math.prod(shape) <= self.numel and (0 in shape or last < self.numel)
        require(inside, f"a tensor of shape {shape} is larger than its storage of {self.numel}")
        if 0 in shape:
            return np.zeros(shape, self.dtype)
        offset, *strides = (n * self.dtype.itemsize for n in (offset, *strides))
        made = np.ndarray(shape, self.dtype, self.raw, offset, strides)
        made.flags.writeable = False
        return made


class _Dtype:
    """A dtype of numpy, of numbers or of text."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, *_: Any):
        plain = type(name) is str and re.fullmatch(r"[<|=]?(\?|[biufcS]\d{1,4})", name)
        require(plain, "it has an array of objects or of an unusual dtype")
        self.dtype = np.dtype(name)


def _table(machine: Machine) -> dict[str, Callable]:
    """Full name -> what it makes; no entry runs anything but what is written here."""

    def tensor(storage, offset, shape, strides, *_):
        require(type(storage) is _Storage, "a tensor has no storage")
        require(type(shape) is tuple and type(strides) is tuple, "a tensor has no shape")
        return storage.tensor(offset, shape, strides)

    def data(value, *_):
        require(type(value) is np.ndarray, "a parameter has no values")
        return value

    def subclass(entry, _, args, *__):
        known = type(entry) is _Global and entry.build in (tensor, data)
        require(known and type(args) is tuple, "a tensor is not described right")
        return entry.build(*args)

    def ordered(pairs=()):
        machine.pay(pairs)
        return {_key(k): v for k, v in pairs}

    def unique(values=()):
        machine.pay(values)
        return {_key(v) for v in values}

    def size(values=()):
        require(type(values) is tuple, "it has a size of no numbers")
        return values

    def encode(text="", encoding="latin1"):
        require(encoding in ("latin1", "latin-1") and type(text) is str, "it encodes no text")
        machine.pay(text)
        return text.encode("latin-1")

    def octets(value="", *args):
        return value if type(value) is bytes else encode(value, *args)

    def scalar(dtype, value):
        known = type(dtype) is _Dtype and type(value) is bytes
        require(known and 0 < dtype.dtype.itemsize == len(value), "it has a broken numpy scalar")
        return np.frombuffer(value, dtype.dtype)[0]

    def stored(*_):
        raise Damaged("it makes a storage out of nothing")

    table = dict.fromkeys(STORAGES, stored)
    table |= dict.fromkeys([f"torch._utils._rebuild_tensor{v}" for v in ("", "_v2")], tensor)
    table |= dict.fromkeys(
        [f"torch._utils._rebuild_parameter{v}" for v in ("", "_with_state")], data
    )
    table |= {
        "torch.nn.parameter.Parameter": data,
        "torch._tensor._rebuild_from_type_v2": subclass,
        "torch.Size": size,
        "collections.OrderedDict": ordered,
        "collections.defaultdict": lambda _=None, pairs=(): ordered(pairs),
        "_codecs.encode": encode,
        "numpy.dtype": _Dtype,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table[f"{module}._reconstruct"] = lambda *_: np.zeros(0, np.int8)
        table[f"{module}.scalar"] = scalar
    for module in ("builtins", "__builtin__"):
        made = {"set": unique, "frozenset": unique, "bytes": octets, "bytearray": octets}
        table |= {f"{module}.{name}": build for name, build in made.items()}
        table[f"{module}.complex"] = complex
    return table


def _key(value: Any) -> Any:
    """A key of a dict or set: what hashes at once, and not as somebody else chose."""
    plain = value is None or type(value) in (str, bytes, float, bool, Inert, _Global)
    require(plain or _count(abs(value) if type(value) is int else value), "a key is no plain value")
    return value


def _children(value: Any) -> list | tuple:
    if type(value) is dict:
        return list(value.values())
    return value if type(value) in (list, tuple) else ()


def _bounded(root: Any) -> Any:
    """The value, if whoever walks through it comes to an end soon; `Inert` ends a walk."""
    measured, opened, todo = {}, set(), [(root, False)]
    while todo:
        value, left = todo.pop()
        children = _children(value)
        if left:
            parts = [measured.get(id(child), (1, 0)) for child in children]
            size, depth = 1 + sum(p[0] for p in parts), 1 + max(p[1] for p in parts)
            require(size < MAX_NODES, "its pickle unfolds to too many values")
            require(depth < MAX_DEPTH, f"its containers are nested deeper than {MAX_DEPTH}")
            measured[id(value)] = size, depth
            opened.discard(id(value))
        elif children and id(value) not in measured:
            require(id(value) not in opened, "it has a container that contains itself")
            opened.add(id(value))
            require(len(opened) < MAX_DEPTH, f"its containers are nested deeper than {MAX_DEPTH}")
            todo.append((value, True))
            todo.extend((child, False) for child in children)
    return root


# Opcodes: those that stand for their argument, those that make a value, and all others.
_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
_MAKES = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_MAKES |= {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
_ACTIONS = {
    "PROTO": lambda m, version: require(version <= 5, f"its pickle has protocol {version}"),
    **dict.fromkeys(("FRAME", "STOP"), lambda m, _: None),
    "MARK": Machine.mark,
    "POP": lambda m, _: m.stack.pop() if m.stack else m.above(),
    "POP_MARK": lambda m, _: m.above(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "TUPLE": lambda m, _: m.push(tuple(m.above())),
    "TUPLE1": lambda m, _: m.push((m.stack.pop(),)),
    "TUPLE2": lambda m, _: m.push((m.stack.pop(-2), m.stack.pop())),
    "TUPLE3": lambda m, _: m.push((m.stack.pop(-3), m.stack.pop(-2), m.stack.pop())),
    "FROZENSET": lambda m, _: m.push(set(map(_key, m.above()))),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extend(m.above())),
    "SETITEM": lambda m, _: m.update([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.update(m.above()),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), Machine.find),
    "REDUCE": Machine.call,
    "NEWOBJ": Machine.new,
    "BUILD": Machine.build,
    "BINPERSID": Machine.persistent,
}
for _name in ("", "BIN", "LONG_BIN"):
    _ACTIONS[f"{_name}PUT"] = Machine.put
    _ACTIONS[f"{_name}GET"] = lambda m, index: m.push(m.memo[index])
