// A sample's gates, read from the memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"
#include "launch.cuh"

namespace memmod {

__device__ __forceinline__ float sigmoid(float alpha) {
  return 1.0f / (1.0f + expf(-alpha));
}

__device__ __forceinline__ float multiplier(float alpha, Gate gate) {
  if (gate == Gate::sigmoid) return sigmoid(alpha);
  return gate == Gate::identity ? alpha : static_cast<float>(alpha > 0.0f);
}

// Whether a class stands at an earlier place of its row.
__device__ __forceinline__ bool repeated(const int64_t* row, int64_t place) {
  for (int64_t i = 0; i < place; ++i)
    if (row[i] == row[place]) return true;
  return false;
}

// The multiplier of channel k for a sample: 1 where it selects nothing (-1), NaN for a class out of range; of a set the
// product, a class that stands twice counting once. `but`: a class that is left out.
__device__ __forceinline__ float gate_of(const Selection& s, int64_t sample, int64_t k, int64_t but = -1) {
  if (s.memory == nullptr) return 1.0f;
  const int64_t* row = s.index + sample * s.sets;
  float product = 1.0f;
  for (int64_t i = 0; i < s.sets; ++i) {
    const int64_t c = row[i];
    if (c == -1 || c == but || repeated(row, i)) continue;
    product *= c < 0 || c >= s.classes ? nanf("") : multiplier(s.memory[c * s.width + k], s.gate);
  }
  return product;
}

// Whether a sample selects class c.
__device__ __forceinline__ bool selects(const Selection& s, int64_t sample, int64_t c) {
  for (int64_t i = 0; i < s.sets; ++i)
    if (s.index[sample * s.sets + i] == c) return true;
  return false;
}

}  // namespace memmod
