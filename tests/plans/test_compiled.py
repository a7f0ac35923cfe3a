"""Collectives against programs whose traffic is known."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dynadapt.plans import compiled
from tests import devices

ROOT = Path(__file__).resolve().parents[2]

HLO = """HloModule jit_step, entry_computation_layout={()->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %y = f32[] add(%x, %x)
}

%body.1 (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %w = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %ag = f32[32,16]{1,0} all-gather(%w), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %ag.2 = f32[32,16]{1,0} all-gather(%w), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %ar = (f32[8,16]{1,0}, bf16[3]{0}) all-reduce(%w, %w), channel_id=2, to_apply=%add
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%w)
}

%condition.1 (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %c = s32[] constant(7)
  ROOT %less = pred[] compare(%c, %c), direction=LT
}

%wrapped (p: f32[4]) -> f32[2] {
  %p = f32[4]{0} parameter(0)
  ROOT %rs = f32[2]{0} reduce-scatter(%p), channel_id=3, dimensions={0}, to_apply=%add
}

ENTRY %main (p: f32[4]) -> f32[] {
  %p = f32[4]{0} parameter(0)
  %loop = (s32[], f32[8,16]{1,0}) while(%t), condition=%condition.1, body=%body.1TRIPS
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), channel_id=4, dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
  %ars = f32[4]{0} all-reduce-start(%p), channel_id=5, to_apply=%add
  %ard = f32[4]{0} all-reduce-done(%ars)
  %call = f32[2]{0} fusion(%p), kind=kLoop, calls=%wrapped
  %cp = u8[100]{0} collective-permute(%p), channel_id=6, source_target_pairs={{0,1}}
  ROOT %r = f32[] add(%p, %p)
}
"""


@pytest.mark.parametrize(
    ("noted", "turns"), [("", 7), (', backend_config={"known_trip_count":{"n":"12"}}', 12)]
)
def test_collectives_of_a_text(noted, turns):
    assert compiled.collectives(HLO.replace("TRIPS", noted)) == {
        "all-reduce": turns * (8 * 16 * 4 + 3 * 2) + 16,
        "all-gather": turns * 32 * 16 * 4 + 64,
        "reduce-scatter": 8,
        "collective-permute": 100,
    }


def test_no_collectives_on_one_device():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((3, 3))).compile().as_text()
    assert compiled.collectives(text) == {}


SHARDED = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from dynadapt.plans import compiled

mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

def place(shape, spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

def once(k, x):
    return jax.grad(lambda k: jnp.tanh(x @ k).sum())(k)

def turns(ks, x):
    gather = lambda k: jax.lax.with_sharding_constraint(k, P())
    return jax.lax.scan(lambda x, k: (jnp.tanh(x @ gather(k)), None), x, ks)[0]

with jax.set_mesh(mesh):
    whole = jax.jit(once, out_shardings=NamedSharding(mesh, P()))
    a = whole.lower(place((32, 48), P()), place((64, 32), P("x"))).compile().as_text()
    b = jax.jit(turns).lower(place((5, 32, 32), P(None, "x")), place((64, 32), P("x")))
    b = b.compile().as_text()
print(json.dumps([compiled.collectives(a), compiled.collectives(b)]))
"""


def test_collectives_of_sharded_programs():
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, env=devices.eight(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    once, turns = json.loads(done.stdout)
    assert once == {"all-reduce": 32 * 48 * 4}
    assert turns == {"all-gather": 5 * 32 * 32 * 4}
