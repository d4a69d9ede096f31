#include "micro/microkernels.h"

#include "micro/cpu_features.h"

namespace memmod::cpu {

const MicroKernels& micro_kernels() {
#ifdef MEMMOD_X86
  if (isa() >= Isa::kAvx512) {
    return isa() == Isa::kAvx512 ? kAvx512 : avx512_bf16();
  }
  if (isa() == Isa::kAvx2) {
    return kAvx2;
  }
#endif
  return kPortable;
}

}  // namespace memmod::cpu
