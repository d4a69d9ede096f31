// memmod::modulate_output, the tail behind any library op: one pass forward; one pass backward that reads the gradient
// and the output once, writes the gradient of the input and sums both's products; and the sums by class.
#include <algorithm>

#include "gates.cuh"
#include "vectors.cuh"

namespace memmod {
namespace {

constexpr int THREADS = 256, LANES = 32, WARPS = THREADS / LANES;
// Loads of a thread that are under way together.
constexpr int UNROLL = 4;
// Threads of a block across the channels at most, and, without sums, blocks that share the rows.
constexpr int COLUMNS = 128, BLOCKS = 1024;

// What one number of x gives.
struct Result {
  float y, term;
};

// With `other`, a ReLU is the one whose result that is: where it let nothing pass, x counts as 0, whatever it is. NaN
// passes, as in torch's.
template <bool OTHER>
__device__ __forceinline__ Result pass(float x, float other, float gate, float shift, bool inside, bool relu) {
  const float value = OTHER && relu && other <= 0.0f ? 0.0f : x;
  inside = !OTHER && inside;
  const float gated = (inside ? value + shift : value) * gate, y = inside ? gated : gated + shift;
  return {!OTHER && relu && y <= 0.0f ? 0.0f : y, OTHER ? value * other : gated};
}

// Channels last: a block takes `chunk` rows of a group of them, blockDim.x x V channels of each, blockDim.y rows at a
// time. Without sums all rows are one group; with them a group is a sample, and its sums start at the sample's first
// row.
// OTHER: sums are of products with it.
template <typename T, bool OTHER, int V>
__global__ void __launch_bounds__(THREADS, 1) modulate_rows_kernel(Modulate call, int group_rows, int chunks) {
  const int64_t width = call.width;
  const int64_t k = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  const int group = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int first = chunk * call.chunk;
  const int last = call.chunk < group_rows - first ? first + call.chunk : group_rows;
  const auto* x = static_cast<const T*>(call.x);
  const auto* other = static_cast<const T*>(call.other);
  const auto* bias = static_cast<const T*>(call.bias);
  auto* y = static_cast<T*>(call.y);
  float sum[V] = {}, gate[V] = {}, shift[V] = {};
  if (k < width) {
    if (bias != nullptr)
      for (int v = 0; v < V; ++v) shift[v] = static_cast<float>(bias[k + v]);
    const unsigned base = static_cast<unsigned>(group) * group_rows, stop = base + last, by = blockDim.y;
    // The first row that has other gates.
    unsigned next = 0;
    for (unsigned row = base + first + threadIdx.y; row < stop;) {
      const bool enters = row >= next;
      unsigned sample = 0;
      if (enters) {
        sample = row / static_cast<unsigned>(call.rows);
        next = (sample + 1) * static_cast<unsigned>(call.rows);
      }
      const unsigned end = next < stop ? next : stop;
      Loaded<T, V> early_x[UNROLL], early_other[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        // A branch would wait for the load before; another thread's row may be written already, if y is x.
        const int64_t o = (row + u * by < end ? row + u * by : row) * width + k;
        early_x[u] = load_early<V>(x + o);
        if constexpr (OTHER) early_other[u] = load_early<V>(other + o);
      }
      if (enters) gates_of(call.selection, sample, k, gate);
      unsigned done = row;
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        const unsigned at = row + u * by;
        if (at >= end) break;
        const auto b_x = numbers<T, V>(early_x[u]);
        Vector<T, V> b_other{}, b_y;
        if constexpr (OTHER) b_other = numbers<T, V>(early_other[u]);
        for (int v = 0; v < V; ++v) {
          const Result result = pass<OTHER>(
              static_cast<float>(b_x.at[v]), static_cast<float>(b_other.at[v]), gate[v], shift[v], call.bias_inside,
              call.relu);
          sum[v] += result.term;
          b_y.at[v] = static_cast<T>(result.y);
        }
        if (y != nullptr) store(y + at * width + k, b_y);
        done = at + by;
      }
      row = done;
    }
  }
  if (call.sums == nullptr) return;
  MEMMOD_SHARED(float, parts, [THREADS * V]);
  const int columns = blockDim.x * V;
  for (int v = 0; v < V; ++v) parts[threadIdx.y * columns + threadIdx.x * V + v] = sum[v];
  __syncthreads();
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < columns; i += blockDim.x * blockDim.y) {
    const int64_t column = static_cast<int64_t>(blockIdx.y) * columns + i;
    if (column >= width) break;
    float total = 0.0f;
    for (int j = 0; j < static_cast<int>(blockDim.y); ++j) total += parts[j * columns + i];
    call.sums[static_cast<int64_t>(blockIdx.x) * width + column] = total;
  }
}

// Channels first: a warp takes `chunk` numbers of a line, which has one gate. Lines start anywhere, so its first and
// last numbers may be outside of the 16-byte vectors between them.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1) modulate_lines_kernel(Modulate call, unsigned lines, bool wide) {
  constexpr int V = WIDE<T>;
  const int lane = threadIdx.x % LANES;
  const unsigned line = blockIdx.x * WARPS + threadIdx.x / LANES, width = static_cast<unsigned>(call.width);
  if (line >= lines) return;
  const unsigned row = line / width, k = line % width;
  const auto* x = static_cast<const T*>(call.x);
  const auto* other = static_cast<const T*>(call.other);
  const bool with_other = other != nullptr;
  auto* y = static_cast<T*>(call.y);
  const float shift = call.bias != nullptr ? static_cast<float>(static_cast<const T*>(call.bias)[k]) : 0.0f;
  const int64_t start = line * call.inner, begin = start + static_cast<int64_t>(blockIdx.y) * call.chunk;
  const int64_t stop = start + call.inner, end = begin + call.chunk < stop ? begin + call.chunk : stop;
  const int64_t vectors = (begin + V - 1) / V * V;
  const int64_t head = wide && vectors < end ? vectors : end, tail = head + (end - head) / V * V;
  float sum = 0.0f, gate = 0.0f;
  const auto passed = [&](T x, T other) {
    const auto a = static_cast<float>(x), b = static_cast<float>(other);
    const Result result = with_other ? pass<true>(a, b, gate, shift, call.bias_inside, call.relu)
                                     : pass<false>(a, b, gate, shift, call.bias_inside, call.relu);
    sum += result.term;
    return static_cast<T>(result.y);
  };
  bool first = true;
  int64_t vector = head + lane * V;
  do {
    Loaded<T, V> early_x[UNROLL] = {}, early_other[UNROLL] = {};
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int64_t i = vector + u * LANES * V;
      if (i < tail) early_x[u] = load_early<V>(x + i);
      if (i < tail && with_other) early_other[u] = load_early<V>(other + i);
    }
    // While these are under way.
    if (first) gate = gate_of(call.selection, row / static_cast<unsigned>(call.rows), k);
    first = false;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int64_t i = vector + u * LANES * V;
      if (i >= tail) break;
      const auto b_x = numbers<T, V>(early_x[u]), b_other = numbers<T, V>(early_other[u]);
      Vector<T, V> b_y;
      for (int v = 0; v < V; ++v) b_y.at[v] = passed(b_x.at[v], b_other.at[v]);
      if (y != nullptr) store(y + i, b_y);
    }
    vector += UNROLL * LANES * V;
  } while (vector < tail);
  const int64_t before = head - begin, others = before + (end - tail);
  for (int64_t j = lane; j < others; j += LANES) {
    const int64_t i = j < before ? begin + j : tail + (j - before);
    const T result = passed(x[i], with_other ? other[i] : T(0.0f));
    if (y != nullptr) y[i] = result;
  }
  if (call.sums == nullptr) return;
  for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
  if (lane == 0) call.sums[(static_cast<int64_t>(row) * gridDim.y + blockIdx.y) * call.width + k] = sum;
}

// A block sums 32 channels of a class, its rows of threads every eighth sample each.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1) class_sums_kernel(ClassSums call, int blocks) {
  const auto& s = call.selection;
  const int c = static_cast<int>(blockIdx.x) / blocks, block = static_cast<int>(blockIdx.x) % blocks;
  const int64_t k = static_cast<int64_t>(block) * LANES + threadIdx.x;
  const auto* a = static_cast<const T*>(call.a);
  const auto* b = static_cast<const T*>(call.b);
  float sum = 0.0f;
  if (k < s.width) {
    for (int64_t sample = threadIdx.y; sample < call.samples; sample += WARPS) {
      if (!selects(s, sample, c)) continue;
      float own = 0.0f;
      for (int64_t part = 0; part < call.parts; ++part) {
        const int64_t o = (sample * call.parts + part) * s.width + k;
        own += b != nullptr ? static_cast<float>(a[o]) * static_cast<float>(b[o]) : static_cast<float>(a[o]);
      }
      if (s.gate == Gate::identity && s.sets > 1) own *= gate_of(s, sample, k, c);
      sum += own;
    }
  }
  MEMMOD_SHARED(float, parts, [WARPS][LANES]);
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || k >= s.width) return;
  float total = 0.0f;
  for (int i = 0; i < WARPS; ++i) total += parts[i][threadIdx.x];
  if (s.gate == Gate::sigmoid) total *= sigmoid(-s.memory[static_cast<int64_t>(c) * s.width + k]);
  call.dmemory[static_cast<int64_t>(c) * s.width + k] = total;
}

template <typename T, int V>
void launch_rows(const Modulate& given, cudaStream_t stream) {
  const int64_t vectors = divide_up(given.width, V), splits = divide_up(vectors, COLUMNS);
  const int64_t columns = divide_up(vectors, splits), by = THREADS / columns;
  const int64_t rows = given.samples * given.rows, group_rows = given.sums != nullptr ? given.rows : rows;
  Modulate call = given;
  if (call.sums == nullptr) {
    // Whole loops, of all threads.
    const int64_t share = divide_up(rows * splits, BLOCKS), multiple = share > by ? by * UNROLL : by;
    call.chunk = static_cast<int>(divide_up(share, multiple) * multiple);
  }
  const int64_t chunks = divide_up(group_rows, call.chunk);
  const dim3 grid(static_cast<unsigned>(rows / group_rows * chunks), static_cast<unsigned>(splits));
  const dim3 block(static_cast<unsigned>(columns), static_cast<unsigned>(by));
  const auto kernel = call.other != nullptr ? modulate_rows_kernel<T, true, V> : modulate_rows_kernel<T, false, V>;
  launch(kernel, grid, block, 0, stream, call, static_cast<int>(group_rows), static_cast<int>(chunks));
}

}  // namespace

void modulate(Type type, const Modulate& call, cudaStream_t stream) {
  const bool wide = aligned(call.x, call.other, call.y);
  with_type(type, [&](auto number) {
    using T = decltype(number);
    if (call.inner > 1) {
      const int64_t chunks = divide_up(call.inner, call.chunk), lines = call.samples * call.rows * call.width;
      const dim3 grid(static_cast<unsigned>(divide_up(lines, WARPS)), static_cast<unsigned>(chunks));
      launch(modulate_lines_kernel<T>, grid, dim3(THREADS), 0, stream, call, static_cast<unsigned>(lines), wide);
    } else if (wide && call.width % WIDE<T> == 0) {
      launch_rows<T, WIDE<T>>(call, stream);
    } else {
      launch_rows<T, 1>(call, stream);
    }
  });
}

void class_sums(Type type, const ClassSums& call, cudaStream_t stream) {
  const int64_t blocks = divide_up(call.selection.width, LANES);
  with_type(type, [&](auto number) {
    launch(
        class_sums_kernel<decltype(number)>, dim3(static_cast<unsigned>(call.selection.classes * blocks)),
        dim3(LANES, WARPS), 0, stream, call, static_cast<int>(blocks));
  });
}

}  // namespace memmod
