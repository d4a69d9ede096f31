// What the kernels may use of the processor.
#pragma once

namespace memmod::cpu {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best that the processor has, or what MEMMOD_CPU_ISA names. Throws ValueError where it names no instruction set,
// or one that the processor does not have.
Isa isa();
const char* isa_name();
// For tests, while no kernel runs: the named one, or with "" the best.
void set_isa(const char* name);

}  // namespace memmod::cpu
