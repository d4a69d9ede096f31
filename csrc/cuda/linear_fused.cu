// memmod::modulated_linear in 16 bits on sm_90: one product of warpgroups with the gates of the units in its epilogue.
// A block of two warpgroups computes one tile of y after the other; a third one copies the tiles of x and of the weight
// (one warp) and makes the gates of the next tile (its others). Gates so cost neither a pass over y nor a launch.
#include "gates.cuh"
#include "vectors.cuh"

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>

#include "hopper.cuh"

namespace memmod {
namespace {

constexpr int WARPGROUP = 128, CONSUMERS = 2, THREADS = (CONSUMERS + 1) * WARPGROUP;
// A tile of y, and the numbers of x's rows that a step multiplies.
constexpr int TILE_M = 128, ROWS = TILE_M / CONSUMERS, STEP = hopper::ROW;
// Steps under way, as many as fit, by the columns of a tile.
constexpr int STAGES_256 = 3, STAGES_192 = 4, STAGES_128 = 5;
// Columns of y that one store takes.
constexpr int PANEL = hopper::ROW;
// Samples that a tile's rows belong to at most.
constexpr int SAMPLES = (TILE_M - 2) / FUSED_ROWS + 2;
// Columns of tiles that blocks share at a time: their weights stay in the cache while x is read once.
constexpr int BAND = 16;
constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / 32, GATE_THREADS = WARPGROUP - 32;
// Of a thread's, whose reads are under way together.
constexpr int GATES = 4;

struct Maps {
  hopper::Map x, weight, y;
};

// y = scale z + shift.
struct Affine {
  float scale, shift;
};

template <typename T, int N>
struct alignas(1024) Shared {
  static constexpr int STAGES = N == 256 ? STAGES_256 : N == 192 ? STAGES_192 : STAGES_128, PANELS = N / PANEL;
  T x[STAGES][TILE_M * STEP];
  T weight[STAGES][N * STEP];
  T y[CONSUMERS][PANELS][ROWS * PANEL];
  // Of two tiles, the one that is computed and the next.
  Affine gates[2][SAMPLES][N];
  hopper::Barrier full[STAGES], empty[STAGES], gates_full[2], gates_empty[2];
};

static_assert(sizeof(Shared<c10::Half, 256>) + 1024 <= 227 * 1024);
static_assert(sizeof(Shared<c10::Half, 192>) + 1024 <= 227 * 1024);
static_assert(sizeof(Shared<c10::Half, 128>) + 1024 <= 227 * 1024);
// Registers of a thread, as the launch gives them and as the warpgroups share them; all of them together at most.
constexpr int REGISTERS = 168, PRODUCER_REGISTERS = 56, CONSUMER_REGISTERS = 224;
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= (CONSUMERS + 1) * REGISTERS);

// The place of a tile, which counts from 0.
struct Place {
  int row, column;
};

template <int N>
__device__ __forceinline__ Place place_of(int tile, int tiles_m, int tiles_n) {
  const int band = tile / (BAND * tiles_m), first = band * BAND;
  const int width = tiles_n - first < BAND ? tiles_n - first : BAND;
  const int within = tile - band * BAND * tiles_m;
  return {within / width * TILE_M, (first + within % width) * N};
}

// A place in a ring of buffers, and the parity of the phase that it is in.
template <int SIZE>
struct Ring {
  int at = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void next() {
    if (++at == SIZE) at = 0, parity ^= 1;
  }
};

template <typename T, int N>
__device__ __forceinline__ void copy_tiles(
    Shared<T, N>& shared, const Maps& maps, const LinearFused& call, int tiles_m, int tiles_n) {
  Ring<Shared<T, N>::STAGES> stage;
  for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    const Place place = place_of<N>(tile, tiles_m, tiles_n);
    for (int k = 0; k < call.inputs; k += STEP) {
      hopper::wait(&shared.empty[stage.at], stage.parity ^ 1);
      hopper::Barrier* full = &shared.full[stage.at];
      hopper::arrive_expecting(full, sizeof(shared.x[0]) + sizeof(shared.weight[0]));
      hopper::load_tile(shared.x[stage.at], &maps.x, k, place.row, full);
      hopper::load_tile(shared.weight[stage.at], &maps.weight, k, place.column, full);
      stage.next();
    }
  }
}

template <typename T, int N>
__device__ __forceinline__ void make_gates(
    Shared<T, N>& shared, const LinearFused& call, int tiles_m, int tiles_n, int thread) {
  Ring<2> buffer;
  for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    const Place place = place_of<N>(tile, tiles_m, tiles_n);
    const int first = place.row / call.rows_per_sample;
    const int last = (place.row + TILE_M < call.rows ? place.row + TILE_M : call.rows) - 1;
    const int count = last / call.rows_per_sample - first + 1;
    hopper::wait(&shared.gates_empty[buffer.at], buffer.parity ^ 1);
    for (int i = thread; i < count * (N / GATES); i += GATE_THREADS) {
      const int sample = i / (N / GATES), n = i % (N / GATES) * GATES, unit = place.column + n;
      // Units are a multiple of 8.
      if (unit >= call.units) continue;
      Vector<T, GATES> bias{};
      if (call.bias != nullptr) bias = load<GATES>(static_cast<const T*>(call.bias) + unit);
      float scale[GATES];
      gates_of(call.out, first + sample, unit, scale);
      for (int v = 0; v < GATES; ++v) {
        const float shift = static_cast<float>(bias.at[v]);
        shared.gates[buffer.at][sample][n + v] = {scale[v], call.gate_bias ? scale[v] * shift : shift};
      }
    }
    hopper::arrive(&shared.gates_full[buffer.at]);
    buffer.next();
  }
}

// Of a warpgroup's rows of a tile, from registers to its part of shared.y, in the accelerator's swizzle.
template <typename T, int N>
__device__ __forceinline__ void gate_tile(
    Shared<T, N>& shared, const float (&sum)[N / 2], const LinearFused& call, int group, int row, int buffer) {
  const int thread = threadIdx.x % WARPGROUP, lane = thread % 32, own = thread / 32 * 16 + lane / 4;
  const int first = row / TILE_M * TILE_M / call.rows_per_sample;
  const Affine* gates[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int at = row + own + 8 * h < call.rows ? row + own + 8 * h : call.rows - 1;
    gates[h] = shared.gates[buffer][at / call.rows_per_sample - first];
  }
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const int column = 8 * j + lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto by = load<2>(gates[h] + column);
      float low = fmaf(sum[4 * j + 2 * h], by.at[0].scale, by.at[0].shift);
      float high = fmaf(sum[4 * j + 2 * h + 1], by.at[1].scale, by.at[1].shift);
      if (call.relu) {
        // NaN stays.
        low = low < 0.0f ? 0.0f : low;
        high = high < 0.0f ? 0.0f : high;
      }
      const unsigned word = hopper::swizzled((own + 8 * h) * 128 + j % 8 * 16) / 4 + lane % 4;
      reinterpret_cast<uint32_t*>(shared.y[group][j / 8])[word] = hopper::pack<T>(low, high);
    }
  }
}

template <typename T, int N>
__device__ __forceinline__ void compute_tiles(
    Shared<T, N>& shared, const Maps& maps, const LinearFused& call, int tiles_m, int tiles_n, int group) {
  // A warp's products are its own: each says for itself that they are done.
  const bool elected = threadIdx.x % WARPGROUP == 0, leads = threadIdx.x % 32 == 0;
  Ring<Shared<T, N>::STAGES> stage;
  Ring<2> buffer;
  for (int tile = blockIdx.x; tile < tiles_m * tiles_n; tile += gridDim.x) {
    const Place place = place_of<N>(tile, tiles_m, tiles_n);
    float sum[N / 2];
    int before = -1;
    for (int k = 0; k < call.inputs; k += STEP) {
      hopper::wait(&shared.full[stage.at], stage.parity);
      const uint64_t a = hopper::descriptor(shared.x[stage.at] + group * ROWS * STEP);
      const uint64_t b = hopper::descriptor(shared.weight[stage.at]);
      hopper::start_products();
#pragma unroll
      for (int i = 0; i < STEP / 16; ++i) hopper::multiply<T>(sum, a + 2 * i, b + 2 * i, k == 0 && i == 0);
      hopper::commit_products();
      // The step before has read its tiles.
      hopper::wait_products<1>();
      if (before >= 0 && leads) hopper::arrive(&shared.empty[before]);
      before = stage.at;
      stage.next();
    }
    hopper::wait_products<0>();
    hopper::hold(sum);
    if (leads) hopper::arrive(&shared.empty[before]);
    if (elected) hopper::wait_stores();
    hopper::wait(&shared.gates_full[buffer.at], buffer.parity);
    hopper::sync_warpgroup(1 + group);
    const int row = place.row + group * ROWS;
    gate_tile(shared, sum, call, group, row, buffer.at);
    hopper::fence_shared();
    hopper::sync_warpgroup(1 + group);
    if (elected) {
      hopper::arrive(&shared.gates_empty[buffer.at]);
      if (row < call.rows) {
#pragma unroll
        for (int panel = 0; panel < Shared<T, N>::PANELS; ++panel) {
          const int column = place.column + panel * PANEL;
          if (column < call.units) hopper::store_tile(&maps.y, shared.y[group][panel], column, row);
        }
      }
      hopper::commit_stores();
    }
    buffer.next();
  }
  if (elected) hopper::wait_stores();
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS, 1)
    linear_fused_kernel(const MEMMOD_GRID_CONSTANT Maps maps, LinearFused call, int tiles_m, int tiles_n) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MEMMOD_HOST)
  MEMMOD_DYNAMIC_SHARED(bytes);
  auto& shared = *reinterpret_cast<Shared<T, N>*>(bytes + (1024 - ptx::shared_address(bytes) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < shared.STAGES; ++i) {
      hopper::initialise(&shared.full[i], 1);
      hopper::initialise(&shared.empty[i], CONSUMER_WARPS);
    }
    for (int i = 0; i < 2; ++i) {
      hopper::initialise(&shared.gates_full[i], GATE_THREADS);
      hopper::initialise(&shared.gates_empty[i], CONSUMERS);
    }
    hopper::fence_barriers();
    hopper::prefetch(&maps.x);
    hopper::prefetch(&maps.weight);
    hopper::prefetch(&maps.y);
  }
  __syncthreads();
  const int group = threadIdx.x / WARPGROUP;
  if (group == CONSUMERS) {
    hopper::give_registers<PRODUCER_REGISTERS>();
    const int thread = threadIdx.x % WARPGROUP;
    if (thread == 0) copy_tiles(shared, maps, call, tiles_m, tiles_n);
    if (thread >= 32) make_gates(shared, call, tiles_m, tiles_n, thread - 32);
  } else {
    hopper::take_registers<CONSUMER_REGISTERS>();
    compute_tiles(shared, maps, call, tiles_m, tiles_n, group);
  }
#else
  // Compiled for another architecture: has_linear_fused() is false.
  __trap();
#endif
}

#ifdef MEMMOD_HOST

// Few, so that small tests have more tiles than blocks.
int multiprocessors() {
  return 3;
}

#else

int multiprocessors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

#endif

template <typename T, int N>
void launch_tiles(Type type, const LinearFused& call, cudaStream_t stream) {
  const int tiles_m = static_cast<int>(divide_up(call.rows, TILE_M)),
            tiles_n = static_cast<int>(divide_up(call.units, N));
  const Maps maps{
      hopper::map_of(type, call.x, call.rows, call.inputs, TILE_M),
      hopper::map_of(type, call.weight, call.units, call.inputs, N),
      hopper::map_of(type, call.y, call.rows, call.units, ROWS)};
  const dim3 grid(static_cast<unsigned>(std::min(tiles_m * tiles_n, multiprocessors())));
  const auto bytes = sizeof(Shared<T, N>) + 1024;
  launch(linear_fused_kernel<T, N>, grid, dim3(THREADS), bytes, stream, maps, call, tiles_m, tiles_n);
}

// Of a tile of so many columns, what a step and what is left take, in 10 ns: fitted to what `python -m
// benchmarks.fused_tiles` measures, on an NVIDIA H100 with torch 2.11, where the choice was the fastest tile (to 1 %)
// for all of its 15 shapes.
struct Cost {
  int columns, step, tile;
};
constexpr Cost COSTS[] = {{128, 40, 150}, {192, 55, 270}, {256, 75, 300}};

int columns_for(const LinearFused& call) {
  const int64_t tiles_m = divide_up(call.rows, TILE_M), steps = divide_up(call.inputs, STEP),
                at_once = multiprocessors();
  const auto cost = [&](const Cost& of) {
    return divide_up(tiles_m * divide_up(call.units, of.columns), at_once) * (steps * of.step + of.tile);
  };
  return std::min_element(
             std::begin(COSTS), std::end(COSTS), [&](const Cost& a, const Cost& b) { return cost(a) < cost(b); })
      ->columns;
}

}  // namespace

#ifdef MEMMOD_HOST

bool has_linear_fused(int) {
  return true;
}

#else

bool has_linear_fused(int device) {
  // Not known, no, yes.
  static std::array<std::atomic<int>, 64> known{};
  const auto ask = [device] {
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    if (major != 9 || minor != 0) return false;
    // PTX of an earlier architecture is compiled for this one too, without its instructions.
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, linear_fused_kernel<c10::BFloat16, 256>));
    return attributes.ptxVersion == 90 && attributes.binaryVersion == 90;
  };
  if (device < 0 || device >= static_cast<int>(known.size())) return ask();
  int answer = known[device];
  if (answer == 0) known[device] = answer = 1 + static_cast<int>(ask());
  return answer == 2;
}

#endif

void linear_fused(Type type, const LinearFused& call, cudaStream_t stream) {
  const int columns = call.columns != 0 ? call.columns : columns_for(call);
  const auto run = [&](auto number) {
    using T = decltype(number);
    if (columns == 128) return launch_tiles<T, 128>(type, call, stream);
    if (columns == 192) return launch_tiles<T, 192>(type, call, stream);
    launch_tiles<T, 256>(type, call, stream);
  };
  type == Type::bf16 ? run(c10::BFloat16{}) : run(c10::Half{});
}

}  // namespace memmod
