// memmod::modulated_linear for a handful of rows with mixed selections (serving): every weight is read once, for all
// rows. It is a matter of how many bytes of the weight are under way, so all threads of a block split its rows' inputs.
#include "gates.cuh"
#include "ptx.cuh"
#include "vectors.cuh"

namespace memmod {
namespace {

constexpr int LANES = 32, WARPS = 8, THREADS = LANES * WARPS;
// Units of a block: each read of x serves that many.
constexpr int UNITS = 4;
// Rows whose inputs a thread holds at a time.
constexpr int GROUP = 4;

template <int V, typename T>
__device__ __forceinline__ Loaded<T, V> load_weight(const T* from) {
  if constexpr (V == 1) {
    return load_early<V>(from);
  } else {
    Loaded<T, V> words;
    ptx::load_once(words.at, from);
    return words;
  }
}

// Sums each of N numbers over the lanes: lanes that hold half of the numbers each exchange the other halves, so that
// lane l has the totals of N / LANES numbers from l * N / LANES on, in sum[0] and behind it. Whatever N is, a number's
// sum runs over the lanes in the same order.
template <int DISTANCE, int N>
__device__ __forceinline__ void sum_lanes(float* sum, int lane) {
  if constexpr (DISTANCE > 0) {
    constexpr int HALF = N / 2;
    if constexpr (HALF == 0) {
      sum[0] += __shfl_xor_sync(0xffffffff, sum[0], DISTANCE);
    } else {
      const bool upper = (lane & DISTANCE) != 0;
#pragma unroll
      for (int i = 0; i < HALF; ++i) {
        const float kept = upper ? sum[i + HALF] : sum[i], given = upper ? sum[i] : sum[i + HALF];
        sum[i] = kept + __shfl_xor_sync(0xffffffff, given, DISTANCE);
      }
    }
    sum_lanes<DISTANCE / 2, HALF == 0 ? 1 : HALF>(sum, lane);
  }
}

// M: rows for which registers are kept. GATED: x has gates. V: numbers that a thread reads at a time.
template <typename T, int M, bool GATED, int V>
__global__ void __launch_bounds__(THREADS, 1) linear_small_kernel(LinearSmall call) {
  constexpr int SUMS = M * UNITS, ROWS = M < GROUP ? M : GROUP;
  using Numbers = Vector<T, V>;
  const auto* x = static_cast<const T*>(call.x);
  const int thread = threadIdx.x, lane = thread % LANES, rows = call.rows;
  const int64_t first_unit = static_cast<int64_t>(blockIdx.x) * UNITS, step = static_cast<int64_t>(blockDim.x) * V;
  const T* weight[UNITS];
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
    const int64_t unit = first_unit + u < call.units ? first_unit + u : call.units - 1;
    weight[u] = static_cast<const T*>(call.weight) + unit * call.inputs;
  }
  // Behind the end the last ones once more: a branch would wait for them.
  const int64_t last = call.inputs - V;
  const auto read = [&](Loaded<T, V>(&loaded)[UNITS], int64_t k) {
#pragma unroll
    for (int u = 0; u < UNITS; ++u) loaded[u] = load_weight<V>(weight[u] + (k < last ? k : last));
  };
  int64_t k = static_cast<int64_t>(thread) * V;
  Loaded<T, V> loaded[UNITS] = {}, next[UNITS] = {};
  if (call.inputs > 0) read(loaded, k);
  // The first threads have a result each; its gate is read while the weights are under way.
  const int row = thread / UNITS;
  const int64_t unit = first_unit + thread % UNITS;
  const bool mine = row < rows && unit < call.units;
  float bias = 0.0f, gate = 1.0f;
  if (mine) {
    if (call.bias != nullptr) bias = static_cast<float>(static_cast<const T*>(call.bias)[unit]);
    gate = gate_of(call.out, row / call.rows_per_sample, unit);
  }
  float sum[SUMS] = {};
  for (; k < call.inputs; k += step) {
    read(next, k + step);
    Numbers w[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) w[u] = numbers<T, V>(loaded[u]);
#pragma unroll
    for (int first = 0; first < M; first += ROWS) {
      if (first >= rows) break;
      Numbers b_x[ROWS];
      if constexpr (GATED) {
        // In memory, as registers have no index; a thread reads its own only, without a barrier.
        MEMMOD_SHARED(Numbers, gated, [ROWS][THREADS]);
#pragma unroll 1
        for (int m = 0; m < ROWS && first + m < rows; ++m)
#pragma unroll 1
          for (int v = 0; v < V; ++v) {
            const float value = static_cast<float>(x[(first + m) * call.inputs + k + v]);
            const float s = gate_of(call.in, (first + m) / call.rows_per_sample, k + v);
            gated[m][thread].at[v] = static_cast<T>(value * s);
          }
#pragma unroll
        for (int m = 0; m < ROWS; ++m) b_x[m] = gated[m][thread];
      } else {
#pragma unroll
        for (int m = 0; m < ROWS; ++m)
          b_x[m] = load<V>(x + (first + m < rows ? first + m : rows - 1) * call.inputs + k);
      }
#pragma unroll
      for (int v = 0; v < V; ++v)
#pragma unroll
        for (int m = 0; m < ROWS; ++m)
#pragma unroll
          for (int u = 0; u < UNITS; ++u)
            sum[(first + m) * UNITS + u] += static_cast<float>(w[u].at[v]) * static_cast<float>(b_x[m].at[v]);
    }
#pragma unroll
    for (int u = 0; u < UNITS; ++u) loaded[u] = next[u];
  }
  sum_lanes<LANES / 2, SUMS>(sum, lane);
  // Of few numbers several lanes have the same.
  constexpr int KEPT = SUMS < LANES ? 1 : SUMS / LANES, SAME = SUMS < LANES ? LANES / SUMS : 1;
  MEMMOD_SHARED(float, parts, [WARPS][SUMS]);
  if (lane % SAME == 0) {
#pragma unroll
    for (int i = 0; i < KEPT; ++i) parts[thread / LANES][lane / SAME * KEPT + i] = sum[i];
  }
  __syncthreads();
  if (!mine) return;
  float z = 0.0f;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / LANES; ++warp) z += parts[warp][thread];
  const float ungated = call.gate_bias ? z + bias : z, product = ungated * gate;
  const int64_t at = row * call.units + unit;
  static_cast<T*>(call.y)[at] = static_cast<T>(call.gate_bias ? product : product + bias);
  if (call.saved != nullptr) static_cast<T*>(call.saved)[at] = static_cast<T>(call.save_ungated ? ungated : product);
}

template <typename T, int M, int V>
void launch_vectors(const LinearSmall& call, cudaStream_t stream) {
  // A thread for each vector of a row and for each result; a warp without vectors adds zeros.
  const int64_t vectors = divide_up(call.inputs, V), needed = vectors > M * UNITS ? vectors : M * UNITS;
  const int64_t threads = needed < THREADS ? divide_up(needed, LANES) * LANES : THREADS;
  const auto kernel =
      call.in.memory != nullptr ? linear_small_kernel<T, M, true, V> : linear_small_kernel<T, M, false, V>;
  launch(
      kernel, dim3(static_cast<unsigned>(divide_up(call.units, UNITS))), dim3(static_cast<unsigned>(threads)), 0,
      stream, call);
}

template <typename T, int M>
void launch_rows(const LinearSmall& call, cudaStream_t stream) {
  const bool wide = aligned(call.x, call.weight) && call.inputs % WIDE<T> == 0;
  wide ? launch_vectors<T, M, WIDE<T>>(call, stream) : launch_vectors<T, M, 1>(call, stream);
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
