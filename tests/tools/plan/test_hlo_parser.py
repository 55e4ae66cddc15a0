"""Tests of parsing programs: shapes in memory, loops and run counts."""

from __future__ import annotations

import pytest

from mae_jax.tools.plan import hlo_parser

# Text of the TPU compiler, shortened to the parts that are parsed.
TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %inner = (s32[], f32[8,16]{1,0}) while(%state), condition=%few, body=%deep
  ROOT %out = (s32[], f32[8,16]{1,0:T(8,128)}) tuple(%i, %x)
}

%deep (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  ROOT %s = (s32[], f32[8,16]{1,0}) parameter(0)
}

%few (s.1: (s32[], f32[8,16])) -> pred[] {
  %s.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%n, %three), direction=LT
}

%open (s.2: (s32[], f32[8,16])) -> pred[] {
  %s.2 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %never = pred[] constant(false)
}

ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %begin = (s32[], f32[8,16]{1,0}) tuple(%zero, %p)
  %loop = (s32[], f32[8,16]{1,0}) while(%begin), condition=%few, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %odd = (s32[], f32[8,16]{1,0}) while(%begin), condition=%open, body=%deep
  ROOT %result = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def module() -> hlo_parser.Module:
  return hlo_parser.Module.parse(TEXT)


@pytest.mark.parametrize(
  ("shape", "size", "space"),
  [
    ("f32[8,16]{1,0}", 8 * 16 * 4, 0),
    ("f32[8,16]{1,0:T(8,128)}", 8 * 128 * 4, 0),  # the last axis is padded
    (
      "f32[8,16]{0,1:T(8,128)}",
      16 * 128 * 4,
      0,
    ),  # the first axis is the last in memory
    ("bf16[2,50,768]{2,1,0:T(8,128)(2,1)S(1)}", 2 * 56 * 768 * 2, 1),
    ("u8[16,224,224,3]{2,1,3,0:T(8,128)(4,1)}", 16 * 3 * 224 * 256, 0),
    ("s32[]{:T(128)}", 4, 0),
    ("pred[7]", 7, 0),
    ("f8e4m3fn[4,4]{1,0}", 16, 0),
    ("f32[512]{0:T(1024)S(6)}", 4096, 6),
  ],
)
def test_bytes_of_an_array(shape: str, size: int, space: int):
  (array,) = hlo_parser.arrays(shape)
  assert array.bytes == size
  assert array.space == space


def test_arrays_of_a_tuple_in_order():
  found = hlo_parser.arrays(
    "(bf16[2,3]{1,0}, /*index=1*/s32[], (f32[5]{0}, u32[2]))"
  )
  assert [(a.dtype, a.dims) for a in found] == [
    ("bf16", (2, 3)),
    ("s32", ()),
    ("f32", (5,)),
    ("u32", (2,)),
  ]


def test_instructions(module: hlo_parser.Module):
  main = module.computations["main"]
  assert module.entry == "main"
  assert list(main) == ["p", "zero", "begin", "loop", "odd", "result"]
  assert main["begin"].operands == ("zero", "p")
  assert main["loop"].called("body") == "body"
  assert main["loop"].called("to_apply") is None
  assert module.root("main").name == "result"
  assert main["zero"].inside == "0"


def test_loops_with_and_without_known_iteration_counts(
  module: hlo_parser.Module,
):
  main = module.computations["main"]
  assert module.trips(main["loop"]) == 5  # the count is in the text
  assert (
    module.trips(module.computations["body"]["inner"]) == 3
  )  # the count is in the condition
  assert module.trips(main["odd"]) is None


def test_nested_loops_multiply(module: hlo_parser.Module):
  assert list(module.runs()) == [
    ("main", 1),
    ("body", 5),
    ("deep", 15),
    ("deep", 1),
  ]


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo_parser.Module.parse("HloModule nothing\n")


CHOICE = """HloModule jit_step

%first (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8] parameter(0)
}

%second (b: f32[8]) -> f32[8] {
  ROOT %b = f32[8] parameter(0)
}

ENTRY %main (p: f32[8], i: s32[]) -> f32[8] {
  %p = f32[8] parameter(0)
  %i = s32[] parameter(1)
  ROOT %chosen = f32[8] conditional(%i, %p, %p), \
branch_computations={%first, %second}
}
"""


def test_branches_count_in_turn():
  runs = dict(hlo_parser.Module.parse(CHOICE).runs())
  assert runs == {"main": 1, "first": 0.5, "second": 0.5}
