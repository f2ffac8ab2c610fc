"""Triton kernels compile for GPUs that are not there: catches what the interpreter lets pass."""

from __future__ import annotations

import importlib.util
import os
import re

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sopt_kernels import _triton_add_noise, _triton_int8_layers
from sopt_kernels._triton_lists import ELEMENTS
from sopt_kernels.ops.perturb_int8 import triton_kernel as perturb
from sopt_kernels.ops.philox4x32 import triton_kernel as philox
from sopt_kernels.ops.restore_accumulate import triton_kernel as restore
from sopt_kernels.ops.update_int8 import triton_kernel as update

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def compile_for(target, function, signature, **constants):
    source = ASTSource(
        fn=function,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    options = {"enable_fp_fusion": False}
    return triton.compile(source, target=TARGETS[target], options=options).asm


LIST = {"STEPS": 9, "ROWS": 256, "ELEMENTS": ELEMENTS}


def add_noise_assembly(target, gaussian, dtype, decay="fp32", stochastic=False):
    pointers = dict.fromkeys(("table_ptr", "seeds_ptr", "ends_ptr", "rounding_seeds_ptr"), "*i64")
    return compile_for(
        target,
        _triton_add_noise._add_noise_kernel,
        {**pointers, "coefficients_ptr": "*fp32", "parts": "i32", "decay": decay},
        GAUSSIAN=gaussian,
        STOCHASTIC=stochastic,
        DTYPE=dtype,
        COLUMNS=5,
        **LIST,
    )


@pytest.mark.parametrize("gaussian", [True, False], ids=["gaussian", "rademacher"])
@pytest.mark.parametrize("target", TARGETS)
def test_add_noise(target, gaussian):
    assembly = add_noise_assembly(target, gaussian, tl.bfloat16)
    text = assembly["amdgcn" if target.startswith("gfx") else "ptx"]
    assert target in text


@pytest.mark.parametrize("dtype", [tl.float32, tl.float16])
def test_add_noise_dtypes(dtype):
    assert "sm_90" in add_noise_assembly("sm_90", True, dtype, decay="fp64")["ptx"]  # as Inductor


@pytest.mark.parametrize("dtype", [tl.bfloat16, tl.float16])
@pytest.mark.parametrize("target", TARGETS)
def test_stochastic_rounding(target, dtype):
    assert add_noise_assembly(target, False, dtype, stochastic=True)


@pytest.mark.parametrize("target", TARGETS)
def test_restore_accumulate(target):
    coefficients = dict.fromkeys(("restore_coefficient_ptr", "grad_coefficient_ptr"), "*fp32")
    types = {"table_ptr": "*i64", "seed_ptr": "*i64", **coefficients}
    options = {"GAUSSIAN": True, "DTYPE": tl.bfloat16, "GRAD_DTYPE": tl.float32, "COLUMNS": 5}
    kernel = restore._restore_accumulate_kernel
    assert compile_for(target, kernel, types, **options, **LIST)


@pytest.mark.parametrize("target", TARGETS)
def test_int8(target):
    """Both kernels, and that the one division there is is correctly rounded."""
    pointers = ("table_ptr", "seeds_ptr", "delta_rounding_seeds_ptr", "rounding_seed_ptr")
    types = {
        **dict.fromkeys((*pointers, "clamped_ptr"), "*i64"),
        **dict.fromkeys(("coefficients_ptr", "eps_ptr"), "*fp32"),
        **dict.fromkeys(("terms", "headroom"), "i32"),
    }
    for kernel in (perturb._perturb_int8_kernel, update._update_int8_kernel):
        own = {name: types[name] for name in kernel.arg_names if name in types}
        assembly = compile_for(target, kernel, own, GAUSSIAN=False, COLUMNS=6, **LIST)
        if target == "sm_90":
            divisions = set(re.findall(r"\bdiv\.[\w.]*f32\b", assembly["ptx"]))
            assert divisions == {"div.rn.f32"}


def test_no_operation_may_be_fused_or_approximated():
    """Each float operation carries .rn: ptxas fuses only multiplications and sums without it."""
    ptx = add_noise_assembly("sm_90", True, tl.float32)["ptx"]
    operations = re.findall(r"\b((?:mul|add|sub|fma|sqrt|div|ex2|lg2|sin|cos)\.[\w.]*f32)\b", ptx)
    assert "sqrt.rn.f32" in operations
    assert [o for o in operations if ".rn" not in o or ".ftz" in o or "approx" in o] == []
    # Four warps: of the pairs of elements a thread has, each takes 11 fma for the radius, 4 for the
    # sine, 4 for the cosine, and 2 for the sums; one more would be a fusion that nobody asked for.
    pairs = ELEMENTS // (4 * 32) // 2
    assert operations.count("fma.rn.f32") == pairs * (11 + 4 + 4 + 2)


@pytest.mark.parametrize("target", TARGETS)
def test_philox4x32(target):
    pointers = dict.fromkeys(("counter_ptr", "key_ptr", "words_ptr"), "*u32")
    types = {**pointers, "n": "i32"}
    assert compile_for(target, philox._philox4x32_kernel, types, ROWS=philox.ROWS)


@pytest.mark.parametrize("mode", ["int8", "float", "gradient"])
@pytest.mark.parametrize("target", TARGETS)
def test_int8_layers(target, mode):
    """The quantized products go to the units for integers, and nothing is divided roughly."""
    layers, quantized = _triton_int8_layers, mode == "int8"
    pointers = {"x_ptr": "*i8" if quantized else "*bf16", "codes_ptr": "*i8", "out_ptr": "*bf16"}
    floats = dict.fromkeys(("pixel_scales_ptr", "scales_ptr", "bias_ptr"), "*fp32")
    sizes = "pixels height width out_height out_width depth columns down right stride padding"
    types = pointers | floats | dict.fromkeys(sizes.split(), "i32")
    options = {"TRANSPOSED": mode == "gradient", "QUANTIZED": quantized, "BIAS": quantized}
    blocks = {"BLOCK_M": layers.PIXELS, "BLOCK_N": layers.OUTPUTS, "BLOCK_K": layers.CHANNELS}
    own = {name: types[name] for name in layers._int8_layer_kernel.arg_names if name in types}
    assembly = compile_for(target, layers._int8_layer_kernel, own, **options, **blocks)
    if quantized and target != "gfx942":
        assert re.search(r"mma\S*\.s32\.s8\.s8\.s32|wgmma\S*\.s32\.s8\.s8", assembly["ptx"])


@pytest.mark.parametrize("target", TARGETS)
def test_quantized_pixels(target):
    kernel = _triton_int8_layers._quantize_pixels_kernel
    types = {"x_ptr": "*bf16", "codes_ptr": "*i8", "scales_ptr": "*fp32", "channels": "i32"}
    assembly = compile_for(target, kernel, types, BLOCK=1024)
    if target == "sm_90":
        assert set(re.findall(r"\bdiv\.[\w.]*f32\b", assembly["ptx"])) == {"div.rn.f32"}
