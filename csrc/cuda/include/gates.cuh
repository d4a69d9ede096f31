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

// The multipliers of V channels from k on for a sample: 1 where it selects nothing (-1), NaN for a class out of range;
// of a set the product, a class that stands twice counting once. `but`: a class that is left out.
template <int V>
__device__ __forceinline__ void gates_of(
    const Selection& s, int64_t sample, int64_t k, float (&product)[V], int64_t but = -1) {
#pragma unroll
  for (int v = 0; v < V; ++v) product[v] = 1.0f;
  if (s.memory == nullptr) return;
  const int64_t* row = s.index + sample * s.sets;
  for (int64_t i = 0; i < s.sets; ++i) {
    const int64_t c = row[i];
    if (c == -1 || c == but || repeated(row, i)) continue;
    const bool known = c >= 0 && c < s.classes;
    // All are under way before the first is used.
    float alpha[V];
#pragma unroll
    for (int v = 0; v < V; ++v) alpha[v] = known ? s.memory[c * s.width + k + v] : nanf("");
#pragma unroll
    for (int v = 0; v < V; ++v) product[v] *= known ? multiplier(alpha[v], s.gate) : nanf("");
  }
}

__device__ __forceinline__ float gate_of(const Selection& s, int64_t sample, int64_t k, int64_t but = -1) {
  float product[1];
  gates_of(s, sample, k, product, but);
  return product[0];
}

// Whether a sample selects class c.
__device__ __forceinline__ bool selects(const Selection& s, int64_t sample, int64_t c) {
  for (int64_t i = 0; i < s.sets; ++i)
    if (s.index[sample * s.sets + i] == c) return true;
  return false;
}

}  // namespace memmod
