"""Every kernel x configuration compiled for three GPU generations without a GPU, and its machine code inspected."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"),
]
pytest.importorskip("triton", reason="triton is not installed")

ARCHITECTURES = (80, 90, 100)
# Bytes of shared memory that one block may have.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
DTYPES = ("bf16", "fp32")
TABLES = {"in_table": "*fp32", "in_rows": "*i64", "out_table": "*fp32", "out_rows": "*i64"}


def compile_kernel(kernel, arguments: dict, arch: int, launch: dict):
    """The kernel with `arguments`: a type ("*bf16", "i32", or "i32:16" for multiples of 16), or a constant's value."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: launch[name] for name in ("num_warps", "num_stages") if name in launch}
    arguments = {**arguments, **{name: value for name, value in launch.items() if name not in options}}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if isinstance(value, str) and re.match(r"\*|i32|i64", value):
            signature[name] = value.removesuffix(":16")
            if value.startswith("*") or value.endswith(":16"):
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name], constants[name] = "constexpr", value
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def instructions(compiled, tmp_path: Path) -> list[str]:
    """The mnemonics of the machine code, with their modifiers."""
    import triton

    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    text = subprocess.run([str(tool), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^[ \t]+/\*[0-9a-f]+\*/[ \t]+(?:@!?\w+[ \t]+)?([A-Z][\w.]*)", text, re.MULTILINE)


def faults(compiled, arch: int, tmp_path: Path, product: bool, wide: bool) -> list[str]:
    """What is wrong with the machine code, in words."""
    found, code = [], instructions(compiled, tmp_path)
    if compiled.metadata.shared > SHARED[arch]:
        found.append(f"{compiled.metadata.shared} bytes of shared memory")
    if any(name.split(".")[0] in ("LDL", "STL") for name in code):
        found.append("registers spilled to local memory")
    # ATOMS, on shared memory, is how tensor cores of sm_100 signal.
    if any(name.split(".")[0] in ("ATOM", "ATOMG", "RED", "REDG") for name in code):
        found.append("a global atomic")
    if product and not any(re.match(r"HMMA|HGMMA|UTC\w*MMA", name) for name in code):
        found.append("no tensor-core instruction")
    if wide and not any(re.match(r"(LDG|LDGSTS)\b.*\.128", name) for name in code):
        found.append("no 16-byte load")
    if wide and not any(re.match(r"STG\b.*\.128", name) for name in code):
        found.append("no 16-byte store")
    return found


def variants(arch: int, dtype: str):
    """(name, kernel, arguments, launch options, is a product, needs 16-byte accesses) of everything to compile."""
    from memmod.kernels import conv2d, gates, linear, output, sums
    from memmod.kernels.configs import every_config

    configs, P = every_config(arch, 4 if dtype == "fp32" else 2), f"*{dtype}"
    absent = dict.fromkeys(TABLES)
    product = {"bias": P, "y": P, "saved": None, "T": "i32", "B": "i32", "R_IN": "i32", "R_OUT": "i32"}
    product |= {"BIAS_GATED": True, "SAVE_UNGATED": False, "PAIR": True, "M": "i32", "N": "i32:16"}
    matmul = {**product, "a": P, "b": P, "K": "i32:16", "B_COLUMNS": True}
    image = "H W HO WO KW TAPS STRIDE_H STRIDE_W PAD_H PAD_W DILATION_H DILATION_W".split()
    conv = {**product, "x": P, "weight": P, "I": "i32:16", **dict.fromkeys(image, "i32")}
    unit = {**absent, "out_table": "*fp32", "out_rows": "*i64"}
    prologue = {**absent, "in_table": "*fp32", "in_rows": "*i64", "bias": None}
    kinds = {
        "unit": unit,
        "unit+input, saved": {**TABLES, "saved": P, "BIAS_GATED": False},
        "rows of several samples": {**unit, "PAIR": False},
        "gradient of x": prologue,
    }
    for config in configs["matmul"]:
        for precision in ("tf32x3", "tf32") if dtype == "fp32" else ("tf32",):
            for kind, changes in kinds.items():
                columns = {"B_COLUMNS": kind != "gradient of x"}
                arguments = {**matmul, **changes, **columns, "PRECISION": precision}
                yield f"matmul {kind} {precision} {config}", linear.modulated_matmul_kernel, arguments, config, True
                if kind != "rows of several samples":
                    arguments = {**conv, **changes, "PRECISION": precision}
                    yield f"conv2d {kind} {precision} {config}", conv2d.modulated_conv2d_kernel, arguments, config, True
    tail = {"x": P, "y": P, "other": None, "bias": None, "sums": None, "table": "*fp32", "rows": "*i64"}
    tail |= {"T": "i32", "B": "i32", "R": "i32", "CHUNKS": "i32"}
    both = {"other": P, "sums": "*fp32"}
    # The blocks of the other kernels do not depend on the architecture.
    if arch != 90:
        return
    for config in configs["rows"]:
        for changes in ({}, both):
            arguments = {**tail, **changes, "K": "i32:16"}
            yield f"rows {config}", output.modulate_rows_kernel, arguments, config, config.block_k >= 64
    for config in configs["lines"]:
        for changes in ({}, both):
            arguments = {**tail, **changes, "K": "i32", "LINES": "i32", "INNER": "i32:16"}
            yield f"lines {config}", output.modulate_lines_kernel, arguments, config, config.block_i >= 256
    small = {"B": "i32", "P": "i32", "C": "i32", "K": "i32:16", "S": "i32", "memory": "*fp32", "index": "*i64"}
    for config in configs["class_sums"]:
        for a, b in (("*fp32", None), (P, P)):
            arguments = {**small, "a": a, "b": b, "sums": "*fp32", "IDENTITY": b is None, "BLOCK_S": 4}
            yield f"class_sums {config}", sums.class_sums_kernel, arguments, config, False
    tables = {"memory": "*fp32", "table": "*fp32", "GATE": "sigmoid"}
    whole = {**tables, "size": "i32", "BLOCK": gates.BLOCK}
    yield "class_table", gates.class_table_kernel, whole, None, False
    sample = {**tables, "index": "*i64", "C": "i32", "K": "i32:16", "S": "i32", "BLOCK_S": 4, "BLOCK_K": gates.BLOCK_K}
    yield "sample_table", gates.sample_table_kernel, sample, None, False
    last = {"sums": "*fp32", "memory": "*fp32", "dmemory": "*fp32", "SPLITS": "i32", "SIZE": "i32"}
    yield "memory_gradient", sums.memory_gradient_kernel, {**last, "SIGMOID": True, "BLOCK": sums.BLOCK}, None, False


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_and_configuration_compiles_to_what_it_should(arch, dtype, tmp_path):
    wrong, count = [], 0
    for name, kernel, arguments, config, wide in variants(arch, dtype):
        compiled = compile_kernel(kernel, arguments, arch, {} if config is None else config.launch())
        product = "PRECISION" in arguments
        found = faults(compiled, arch, tmp_path, product=product, wide=wide)
        wrong += [f"{name}: {fault}" for fault in found]
        count += 1
    assert not wrong, "\n".join(wrong)
    assert count >= 20
    print(f"{count} kernels compiled for sm_{arch} in {dtype}")


def test_an_oversized_tile_is_caught_as_a_spill(tmp_path):
    name, kernel, arguments, config, _ = next(variants(90, "bf16"))
    launch = {**config.launch(), "BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "num_warps": 4}
    compiled = compile_kernel(kernel, arguments, 90, launch)
    assert "registers spilled to local memory" in faults(compiled, 90, tmp_path, product=True, wide=True)


def test_odd_sizes_are_caught_as_narrow_accesses(tmp_path):
    name, kernel, arguments, config, _ = next(variants(80, "bf16"))
    compiled = compile_kernel(kernel, {**arguments, "N": "i32", "K": "i32"}, 80, config.launch())
    assert faults(compiled, 80, tmp_path, product=True, wide=True) == ["no 16-byte load", "no 16-byte store"]
