// memmod::modulated_conv2d in channels last: an implicit product of output pixels x units on tensor cores, gates, bias
// and ReLU in its epilogue; the gradient of the input is the same product with the taps turned around.
#include <cstdint>

#include "gates.cuh"
#include "ptx.cuh"
#include "vectors.cuh"

namespace memmod {
namespace {

// A block has BM pixels x BN units, its four warps 64 x 32 each; a stage holds CHUNKS pieces of 16 bytes of every row.
constexpr int BM = 128, BN = 64, THREADS = 128, LANES = 32, STAGES = 3, CHUNKS = 4, CHUNK = 16;
constexpr int ROW_BYTES = CHUNKS * CHUNK, STAGE_BYTES = (BM + BN) * ROW_BYTES, SHARED_BYTES = STAGES * STAGE_BYTES;
// Of a warp, in fragments of 16 x 8.
constexpr int FRAGMENTS_M = 4, FRAGMENTS_N = 4;
// Of a row of fp32 results: four more, so that the rows of a fragment lie in different banks.
constexpr int RESULT = BN + 4;
static_assert(BM * RESULT * sizeof(float) <= SHARED_BYTES, "results take the place of the stages");
constexpr int LOADS_M = BM * CHUNKS / THREADS, LOADS_N = BN * CHUNKS / THREADS;

// Where a row's chunk lies in a stage: eight rows' equal chunks in eight different groups of banks.
__device__ __forceinline__ int place(int row, int chunk) {
  return row * ROW_BYTES + (chunk ^ (row >> 1 & (CHUNKS - 1))) * CHUNK;
}

// A place in the sum over taps and channels.
struct Position {
  int channel, tap_h, tap_w;

  __device__ __forceinline__ void advance(int channels, const Conv2d& call) {
    channel += channels;
    while (channel >= call.inputs) {
      channel -= call.inputs;
      if (++tap_w == call.kernel_w) {
        tap_w = 0;
        ++tap_h;
      }
    }
  }
};

// An output pixel, or none, and where the first tap reads for it.
struct Pixel {
  int image, h, w;
};

// The number of x's pixel that a tap reads, -1 outside of the image.
template <bool TRANSPOSED>
__device__ __forceinline__ int source(const Conv2d& call, const Pixel& pixel, const Position& k) {
  if (pixel.image < 0 || k.tap_h >= call.kernel_h) return -1;
  int h, w;
  if (TRANSPOSED) {
    h = pixel.h - k.tap_h * call.dilation_h;
    w = pixel.w - k.tap_w * call.dilation_w;
    if (h < 0 || w < 0 || h % call.stride_h != 0 || w % call.stride_w != 0) return -1;
    h /= call.stride_h;
    w /= call.stride_w;
  } else {
    h = pixel.h + k.tap_h * call.dilation_h;
    w = pixel.w + k.tap_w * call.dilation_w;
    if (h < 0 || w < 0) return -1;
  }
  if (h >= call.height || w >= call.width) return -1;
  return (pixel.image * call.height + h) * call.width + w;
}

struct Fragments {
  uint32_t a[FRAGMENTS_M][4], b[FRAGMENTS_N][2];
};

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], c10::BFloat16) {
  ptx::mma_bf16(c, a, b);
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], c10::Half) {
  ptx::mma_f16(c, a, b);
}

__device__ __forceinline__ float as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// What TF32 leaves of numbers, and what that in turn leaves of the rest.
template <int N>
__device__ __forceinline__ void split(uint32_t (&numbers)[N], uint32_t (&rest)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const uint32_t large = ptx::to_tf32(as_float(numbers[i]));
    rest[i] = ptx::to_tf32(as_float(numbers[i]) - as_float(large));
    numbers[i] = large;
  }
}

// PRODUCTS: of fp32 numbers, 1 in TF32, or 3 of their two halves each, which keep fp32's precision.
template <typename T, int PRODUCTS>
__device__ __forceinline__ void multiply_all(float (&sum)[FRAGMENTS_M][FRAGMENTS_N][4], Fragments& f) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N; ++j) multiply(sum[i][j], f.a[i], f.b[j], T{});
  } else {
    uint32_t rest_b[FRAGMENTS_N][2];
#pragma unroll
    for (int j = 0; j < FRAGMENTS_N; ++j) split(f.b[j], rest_b[j]);
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; ++i) {
      uint32_t rest_a[4];
      split(f.a[i], rest_a);
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N; ++j) {
        if constexpr (PRODUCTS == 3) {
          // Tensor cores add towards zero: the long sum is one of ordinary additions, which have no such bias.
          float part[4] = {};
          ptx::mma_tf32(part, rest_a, f.b[j]);
          ptx::mma_tf32(part, f.a[i], rest_b[j]);
          ptx::mma_tf32(part, f.a[i], f.b[j]);
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[i][j][e] += part[e];
        } else {
          ptx::mma_tf32(sum[i][j], f.a[i], f.b[j]);
        }
      }
    }
  }
}

// WIDE_LOADS: every chunk is 16 aligned bytes of one pixel, copied asynchronously.
template <typename T, bool TRANSPOSED, bool WIDE_LOADS, int PRODUCTS>
__global__ void __launch_bounds__(THREADS, 1) conv2d_kernel(Conv2d call) {
  constexpr int V = WIDE<T>, BK = CHUNKS * V;
  MEMMOD_DYNAMIC_SHARED(memory);
  const int thread = threadIdx.x, lane = thread % LANES, warp = thread / LANES;
  const int warp_m = warp / 2 * (BM / 2), warp_n = warp % 2 * (BN / 2);
  const int area = call.out_height * call.out_width, pixels = call.images * area;
  const int first_m = blockIdx.x * BM, first_n = blockIdx.y * BN;
  const int taps = call.kernel_h * call.kernel_w, length = taps * call.inputs, steps = (length + BK - 1) / BK;
  const auto* x = static_cast<const T*>(call.x);
  const auto* weight = static_cast<const T*>(call.weight);

  // A thread loads the same chunk of several rows.
  const int chunk = thread % CHUNKS, row = thread / CHUNKS;
  Pixel rows[LOADS_M];
#pragma unroll
  for (int i = 0; i < LOADS_M; ++i) {
    const int m = first_m + row + i * (THREADS / CHUNKS);
    const int inside = m % area, out_h = inside / call.out_width, out_w = inside % call.out_width;
    if (TRANSPOSED) {
      rows[i] = {m < pixels ? m / area : -1, out_h + call.padding_h, out_w + call.padding_w};
    } else {
      rows[i] = {
          m < pixels ? m / area : -1, out_h * call.stride_h - call.padding_h, out_w * call.stride_w - call.padding_w};
    }
  }
  Position k{0, 0, 0};
  k.advance(chunk * V, call);

  const auto load_stage = [&](int step) {
    unsigned char* const a = memory + step % STAGES * STAGE_BYTES;
    unsigned char* const b = a + BM * ROW_BYTES;
    const int first_k = step * BK + chunk * V;
#pragma unroll
    for (int i = 0; i < LOADS_M; ++i) {
      unsigned char* const to = a + place(row + i * (THREADS / CHUNKS), chunk);
      if constexpr (WIDE_LOADS) {
        const int from = source<TRANSPOSED>(call, rows[i], k);
        ptx::cp_async(
            to, from < 0 ? x : x + static_cast<int64_t>(from) * call.inputs + k.channel, from < 0 ? 0 : CHUNK);
      } else {
        Position each = k;
        Vector<T, V> numbers;
        for (int v = 0; v < V; ++v, each.advance(1, call)) {
          const int from = source<TRANSPOSED>(call, rows[i], each);
          numbers.at[v] = from < 0 ? T(0.0f) : x[static_cast<int64_t>(from) * call.inputs + each.channel];
        }
        store(reinterpret_cast<T*>(to), numbers);
      }
    }
#pragma unroll
    for (int i = 0; i < LOADS_N; ++i) {
      const int n = row + i * (THREADS / CHUNKS), unit = first_n + n;
      const T* const from = weight + static_cast<int64_t>(unit) * length + first_k;
      if constexpr (WIDE_LOADS) {
        const bool there = unit < call.units && first_k < length;
        ptx::cp_async(b + place(n, chunk), there ? from : weight, there ? CHUNK : 0);
      } else {
        Vector<T, V> numbers;
        for (int v = 0; v < V; ++v) numbers.at[v] = unit < call.units && first_k + v < length ? from[v] : T(0.0f);
        store(reinterpret_cast<T*>(b + place(n, chunk)), numbers);
      }
    }
    k.advance(BK, call);
  };

  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < steps) load_stage(step);
    ptx::cp_async_commit();
  }
  float sum[FRAGMENTS_M][FRAGMENTS_N][4] = {};
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<STAGES - 2>();
    // What all threads copied has arrived, and what the last step read may be written over.
    __syncthreads();
    if (step + STAGES - 1 < steps) load_stage(step + STAGES - 1);
    ptx::cp_async_commit();
    const unsigned char* const a = memory + step % STAGES * STAGE_BYTES;
    const unsigned char* const b = a + BM * ROW_BYTES;
#pragma unroll
    for (int half = 0; half < CHUNKS; half += 2) {
      Fragments f;
#pragma unroll
      for (int i = 0; i < FRAGMENTS_M; ++i)
        ptx::ldmatrix(f.a[i], a + place(warp_m + i * 16 + lane % 16, half + lane / 16));
#pragma unroll
      for (int j = 0; j < FRAGMENTS_N; j += 2) {
        uint32_t both[4];
        ptx::ldmatrix(both, b + place(warp_n + j * 8 + lane / 16 * 8 + lane % 8, half + lane / 8 % 2));
        f.b[j][0] = both[0];
        f.b[j][1] = both[1];
        f.b[j + 1][0] = both[2];
        f.b[j + 1][1] = both[3];
      }
      multiply_all<T, PRODUCTS>(sum, f);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();

  // Through shared memory, so that a thread has neighbouring units of a pixel.
  float* const results = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int i = 0; i < FRAGMENTS_M; ++i)
#pragma unroll
    for (int j = 0; j < FRAGMENTS_N; ++j)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int m = warp_m + i * 16 + e / 2 * 8 + lane / 4, n = warp_n + j * 8 + lane % 4 * 2;
        store(results + m * RESULT + n, Vector<float, 2>{sum[i][j][e], sum[i][j][e + 1]});
      }
  __syncthreads();
  constexpr int COLUMNS = BN / V;
  const int column = thread % COLUMNS * V, unit = first_n + column;
  const int units = call.units - unit < V ? call.units - unit : V;
  if (units <= 0) return;
  const bool wide = units == V && call.units % V == 0 && call.aligned;
  float bias[V] = {}, gate[V] = {};
  if (call.bias != nullptr)
    for (int v = 0; v < units; ++v) bias[v] = static_cast<float>(static_cast<const T*>(call.bias)[unit + v]);
  int sample = -1;
  for (int r = thread / COLUMNS; r < BM; r += THREADS / COLUMNS) {
    const int m = first_m + r;
    if (m >= pixels) break;
    if (const int of_row = m / area / call.images_per_sample; of_row != sample) {
      sample = of_row;
      for (int v = 0; v < units; ++v) gate[v] = gate_of(call.out, sample, unit + v);
    }
    Vector<T, V> b_y, b_saved;
    for (int v = 0; v < V; ++v) {
      const float z = results[r * RESULT + column + v], ungated = call.gate_bias ? z + bias[v] : z;
      const float gated = ungated * gate[v], shifted = call.gate_bias ? gated : gated + bias[v];
      b_y.at[v] = static_cast<T>(call.relu && shifted < 0.0f ? 0.0f : shifted);
      b_saved.at[v] = static_cast<T>(call.save_ungated ? ungated : gated);
    }
    const int64_t o = static_cast<int64_t>(m) * call.units + unit;
    auto* const y = static_cast<T*>(call.y);
    auto* const saved = static_cast<T*>(call.saved);
    if (wide) {
      store(y + o, b_y);
      if (saved != nullptr) store(saved + o, b_saved);
    } else {
      for (int v = 0; v < units; ++v) {
        y[o + v] = b_y.at[v];
        if (saved != nullptr) saved[o + v] = b_saved.at[v];
      }
    }
  }
}

template <typename T, bool TRANSPOSED, bool WIDE_LOADS>
void launch_tiles(const Conv2d& call, cudaStream_t stream) {
  const int64_t pixels = static_cast<int64_t>(call.images) * call.out_height * call.out_width;
  const dim3 grid(static_cast<unsigned>(divide_up(pixels, BM)), static_cast<unsigned>(divide_up(call.units, BN)));
  constexpr int EXACT = sizeof(T) == 4 ? 3 : 1;
  const auto kernel =
      call.tf32 ? conv2d_kernel<T, TRANSPOSED, WIDE_LOADS, 1> : conv2d_kernel<T, TRANSPOSED, WIDE_LOADS, EXACT>;
  launch(kernel, grid, dim3(THREADS), SHARED_BYTES, stream, call);
}

}  // namespace

void conv2d(Type type, const Conv2d& given, cudaStream_t stream) {
  Conv2d call = given;
  call.aligned = aligned(call.y, call.saved);
  with_type(type, [&](auto number) {
    using T = decltype(number);
    const bool wide = call.inputs % WIDE<T> == 0 && aligned(call.x, call.weight);
    if (call.transposed)
      return wide ? launch_tiles<T, true, true>(call, stream) : launch_tiles<T, true, false>(call, stream);
    wide ? launch_tiles<T, false, true>(call, stream) : launch_tiles<T, false, false>(call, stream);
  });
}

}  // namespace memmod
