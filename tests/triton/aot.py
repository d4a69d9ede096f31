"""Triton kernels compiled without a GPU, and what their machine code shows: registers, memory, spills, atomics, tensor
cores, widths of accesses. Launches are recorded from the host functions themselves, so none is written down twice."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from memmod.kernels import conv2d, linear, output, sums

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64"}
# Bytes of shared memory: of one block, and of a multiprocessor's blocks together, each with 1 KiB of its own.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
SHARED_RESERVED = 1 << 10
REGISTERS, WARPS, BLOCKS = 65536, 64, 32
# Columns of the tensor memory of sm_100.
TENSOR_MEMORY = 512


class Launch(NamedTuple):
    """One launch: a kernel, its arguments by name (constants among them), and Triton's options."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def warps(self) -> int:
        return self.options.get("num_warps", 4)

    @property
    def stages(self) -> int:
        return self.options.get("num_stages", 3)

    def constants(self) -> dict[str, Any]:
        return {p.name: self.arguments[p.name] for p in self.kernel.params if p.is_constexpr}


@contextmanager
def recording(arch: int, precision: str = "tf32x3") -> Iterator[list[Launch]]:
    """Launches inside are recorded instead of run, as on a GPU of `arch`; fp32 products in `precision`."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        arguments.update((name, kwargs.pop(name)) for name in kernel.arg_names if name in kwargs)
        launches.append(Launch(kernel, arguments, kwargs))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        for module in (linear, conv2d, output, sums):
            stack.enter_context(mock.patch.object(module, "architecture", lambda device: arch))
        for setting in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
            before = setting.fp32_precision
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
            stack.callback(setattr, setting, "fp32_precision", before)
        yield launches


def compiled(launch: Launch, arch: int) -> Any:
    """The launch's kernel for `arch`, specialised as Triton would for these arguments: 1 and None are constants,
    multiples of 16 are known to be, and addresses are aligned to 16 bytes."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        aligned = isinstance(value, torch.Tensor)
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif aligned:
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


class Facts(NamedTuple):
    """What the machine code of one kernel shows."""

    warps: int
    registers: int
    shared: int
    stack: int
    """Bytes of local memory a thread"""
    spills: int
    """Loads from and stores to local memory"""
    atomics: int
    """On global memory"""
    tensor_cores: str
    """The instructions, "" for none"""
    wide_loads: int
    """Global loads of 16 bytes a thread"""
    wide_stores: int
    tensor_memory: int

    def blocks(self, arch: int) -> int:
        """Blocks that a multiprocessor holds at once, by registers, shared memory and threads."""
        # A warp gets registers in portions of 256, from one of four files.
        by_registers = REGISTERS // 4 // (-(-self.registers * 32 // 256) * 256) * 4 // self.warps
        portion = -(-(self.shared + SHARED_RESERVED) // 128) * 128
        return min(BLOCKS, WARPS // self.warps, by_registers, (SHARED_LIMIT[arch] + SHARED_RESERVED) // portion)


SPILLS = {"LDL", "STL"}
# ATOMS is on shared memory: sm_100 has it around its tensor memory. REDUX is between a warp's registers.
ATOMICS = {"ATOM", "ATOMG", "RED", "REDG", "UREDGR", "UTMAREDG", "UBLKRED"}
TENSOR_CORES = re.compile(r"(HMMA|HGMMA|UTC\w*MMA)$")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


def code(cubin: bytes) -> bytes:
    """The instructions of an ELF file: its sections .text.*"""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(number)]
    found = b""
    for name, _, _, _, offset, length in headers:
        if cubin.startswith(b".text.", headers[names][4] + name):
            found += cubin[offset : offset + length]
    return found


def disassembled(codes: Sequence[bytes], arch: int) -> list[Counter[str]]:
    """How often each code has each instruction, modifiers included; one call for all, as the tool starts slowly."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code")
        path.write_bytes(b"".join(codes))
        binary = "SM80" if arch == 80 else f"SM{arch}a"
        command = [TOOLS / "nvdisasm", "--no-dataflow", "--binary", binary, path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: list[Counter[str]] = [Counter() for _ in codes]
    i, end = 0, len(codes[0])
    for match in INSTRUCTION.finditer(text):
        while int(match[1], 16) >= end:
            i += 1
            end += len(codes[i])
        found[i][match[2]] += 1
    assert all(counts["EXIT"] for counts in found), "the disassembly has another form"
    return found


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text).groups()
    return int(registers), int(stack) + int(local)


def inspected(launches: Sequence[Launch], arch: int) -> list[Facts]:
    """Compiles the launches for `arch` and reads their machine code."""
    kernels = [compiled(launch, arch) for launch in launches]
    cubins = [kernel.asm["cubin"] for kernel in kernels]
    found = []
    counted = disassembled([code(cubin) for cubin in cubins], arch)
    for launch, kernel, cubin, counts in zip(launches, kernels, cubins, counted, strict=True):
        registers, stack = resources(cubin)
        by_name: Counter[str] = Counter()
        wide: Counter[str] = Counter()
        for instruction, count in counts.items():
            name, *modifiers = instruction.split(".")
            by_name[name] += count
            wide[name] += count * (2 if "256" in modifiers else 1 if "128" in modifiers else 0)
        found.append(
            Facts(
                warps=launch.warps,
                registers=registers,
                shared=kernel.metadata.shared,
                stack=stack,
                spills=sum(by_name[name] for name in SPILLS),
                atomics=sum(by_name[name] for name in ATOMICS),
                tensor_cores=" ".join(sorted(name for name in by_name if TENSOR_CORES.match(name))),
                wide_loads=wide["LDG"] + wide["LDGSTS"],
                wide_stores=wide["STG"],
                tensor_memory=getattr(kernel.metadata, "tmem_size", 0) or 0,
            )
        )
    return found


class Expected(NamedTuple):
    """What a kernel's code must have."""

    tensor_cores: bool = False
    wide_loads: int = 0
    """Global loads of 16 bytes a thread that its streamed operands need, counted from its blocks"""
    wide_stores: int = 0


def problems(facts: Facts, expected: Expected, arch: int) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = []
    if facts.shared > SHARED_LIMIT[arch]:
        found.append(f"{facts.shared} bytes of shared memory, sm_{arch} has {SHARED_LIMIT[arch]}")
    if facts.tensor_memory > TENSOR_MEMORY:
        found.append(f"{facts.tensor_memory} columns of tensor memory, there are {TENSOR_MEMORY}")
    if facts.spills or facts.stack:
        found.append(f"spills: {facts.spills} accesses to {facts.stack} bytes of local memory")
    if facts.atomics:
        found.append(f"{facts.atomics} atomics on global memory")
    if expected.tensor_cores and not facts.tensor_cores:
        found.append("no tensor-core instruction")
    if facts.wide_loads < expected.wide_loads:
        found.append(f"{facts.wide_loads} global loads of 16 bytes, {expected.wide_loads} are needed")
    if facts.wide_stores < expected.wide_stores:
        found.append(f"{facts.wide_stores} global stores of 16 bytes, {expected.wide_stores} are needed")
    if facts.blocks(arch) == 0:
        found.append("no block fits on a multiprocessor")
    return found
