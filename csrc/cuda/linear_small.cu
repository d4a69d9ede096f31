// memmod::modulated_linear for a handful of rows with mixed selections (serving): every weight is read once, for all
// rows; x, gated, is kept in shared memory.
#include "gates.cuh"
#include "vectors.cuh"

namespace memmod {
namespace {

constexpr int LANES = 32, WARPS = 4, THREADS = LANES * WARPS;
// Units of a warp: each read of x serves that many.
constexpr int UNITS = 2;
// Inputs of x that are in shared memory at a time: 32 KiB for 16 rows in fp32.
constexpr int CHUNK = 512;

// M: rows for which registers are kept. V: numbers of a row of W that a lane reads at a time.
template <typename T, int M, int V>
__global__ void __launch_bounds__(THREADS, 1) linear_small_kernel(LinearSmall call) {
  MEMMOD_DYNAMIC_SHARED(memory);
  T* const staged = reinterpret_cast<T*>(memory);
  const auto* x = static_cast<const T*>(call.x);
  const auto* weight = static_cast<const T*>(call.weight);
  const int lane = threadIdx.x % LANES, rows = call.rows;
  const int64_t unit = (static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / LANES) * UNITS;
  float sum[UNITS][M] = {};
  for (int64_t first = 0; first < call.inputs; first += CHUNK) {
    const int count = static_cast<int>(call.inputs - first < CHUNK ? call.inputs - first : CHUNK);
    if (first > 0) __syncthreads();
    for (int i = threadIdx.x; i < rows * count; i += THREADS) {
      const int row = i / count, k = i % count;
      const float value = static_cast<float>(x[row * call.inputs + first + k]);
      staged[row * CHUNK + k] = static_cast<T>(value * gate_of(call.in, row / call.rows_per_sample, first + k));
    }
    __syncthreads();
    for (int k = lane * V; k < count; k += LANES * V) {
      Vector<T, V> w[UNITS] = {};
#pragma unroll
      for (int u = 0; u < UNITS; ++u)
        if (unit + u < call.units) w[u] = load<V>(weight + (unit + u) * call.inputs + first + k);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (m >= rows) break;
        const auto b_x = load<V>(staged + m * CHUNK + k);
#pragma unroll
        for (int u = 0; u < UNITS; ++u)
#pragma unroll
          for (int v = 0; v < V; ++v) sum[u][m] += static_cast<float>(w[u].at[v]) * static_cast<float>(b_x.at[v]);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < UNITS; ++u)
#pragma unroll
    for (int m = 0; m < M; ++m)
      for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum[u][m] += __shfl_xor_sync(0xffffffff, sum[u][m], lanes);
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
    float z = 0.0f;
    // Lane m takes row m.
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (lane == m) z = sum[u][m];
    const int64_t o = unit + u;
    if (lane >= rows || o >= call.units) continue;
    const float bias = call.bias != nullptr ? static_cast<float>(static_cast<const T*>(call.bias)[o]) : 0.0f;
    const float ungated = call.gate_bias ? z + bias : z;
    const float gated = ungated * gate_of(call.out, lane / call.rows_per_sample, o);
    const int64_t at = lane * call.units + o;
    static_cast<T*>(call.y)[at] = static_cast<T>(call.gate_bias ? gated : gated + bias);
    if (call.saved != nullptr) static_cast<T*>(call.saved)[at] = static_cast<T>(call.save_ungated ? ungated : gated);
  }
}

template <typename T, int M>
void launch_rows(const LinearSmall& call, cudaStream_t stream) {
  const bool wide = aligned(call.weight) && call.inputs % WIDE<T> == 0;
  const auto kernel = wide ? linear_small_kernel<T, M, WIDE<T>> : linear_small_kernel<T, M, 1>;
  launch(
      kernel, dim3(static_cast<unsigned>(divide_up(call.units, WARPS * UNITS))), dim3(THREADS),
      call.rows * CHUNK * sizeof(T), stream, call);
}

}  // namespace

void linear_small(Type type, const LinearSmall& call, cudaStream_t stream) {
  with_type(type, [&](auto number) {
    using T = decltype(number);
    if (call.rows <= 1) return launch_rows<T, 1>(call, stream);
    if (call.rows <= 4) return launch_rows<T, 4>(call, stream);
    launch_rows<T, SMALL_ROWS>(call, stream);
  });
}

}  // namespace memmod
