"""What a backbone answers."""

import dataclasses

import jax

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Features:
    """What a backbone returns.

    Attributes:
        maps: chosen levels, fine to coarse, each `b h w d`; the last went through the final norm.
        tokens: class token and registers, for points prompts too, after the final norm, `b p d`.
        aux: what layers recorded, by name.
        strides: pixels between the entries of each map; () for points.
        places: of clouds the points `b n 3`, and the middles `b g 3` of the groups in `maps`.
    """

    maps: tuple[Array, ...]
    tokens: Array
    aux: dict[str, Array] = dataclasses.field(default_factory=dict)
    strides: tuple[int, ...] = dataclasses.field(default=(), metadata=dict(static=True))
    places: tuple[Array, ...] = ()
