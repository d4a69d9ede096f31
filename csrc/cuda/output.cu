// memmod::modulate_output, the tail behind any library op: one pass forward; one pass backward that reads the gradient
// and the output once, writes the gradient of the input and sums both's products; and the sums by class.
#include <algorithm>

#include "gates.cuh"
#include "vectors.cuh"

namespace memmod {
namespace {

constexpr int THREADS = 256, LANES = 32, WARPS = THREADS / LANES;

// Channels last: a block takes `chunk` rows of a group of them, blockDim.x x V channels at a time. Without sums all
// rows are one group; with them a group is a sample, and its sums start at the sample's first row.
template <typename T, int V>
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
    unsigned sample = ~0u;
    for (int r = first + static_cast<int>(threadIdx.y); r < last; r += blockDim.y) {
      const unsigned row = static_cast<unsigned>(group) * group_rows + r;
      if (const unsigned of_row = row / static_cast<unsigned>(call.rows); of_row != sample) {
        sample = of_row;
        for (int v = 0; v < V; ++v) gate[v] = gate_of(call.selection, sample, k + v);
      }
      const int64_t o = row * width + k;
      const auto b_x = load<V>(x + o);
      Vector<T, V> b_other, b_y;
      if (other != nullptr) b_other = load<V>(other + o);
      for (int v = 0; v < V; ++v) {
        const float value = static_cast<float>(b_x.at[v]), gated = value * gate[v];
        sum[v] += other != nullptr ? value * static_cast<float>(b_other.at[v]) : gated;
        b_y.at[v] = static_cast<T>(gated + shift[v]);
      }
      if (y != nullptr) store(y + o, b_y);
    }
  }
  if (call.sums == nullptr) return;
  MEMMOD_SHARED(float, parts, [THREADS * V]);
  const int columns = blockDim.x * V;
  for (int v = 0; v < V; ++v) parts[threadIdx.y * columns + threadIdx.x * V + v] = sum[v];
  __syncthreads();
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < columns; i += THREADS) {
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
  auto* y = static_cast<T*>(call.y);
  const float gate = gate_of(call.selection, row / static_cast<unsigned>(call.rows), k);
  const float shift = call.bias != nullptr ? static_cast<float>(static_cast<const T*>(call.bias)[k]) : 0.0f;
  const int64_t start = line * call.inner, begin = start + static_cast<int64_t>(blockIdx.y) * call.chunk;
  const int64_t stop = start + call.inner, end = begin + call.chunk < stop ? begin + call.chunk : stop;
  const int64_t vectors = (begin + V - 1) / V * V;
  const int64_t head = wide && vectors < end ? vectors : end, tail = head + (end - head) / V * V;
  float sum = 0.0f;
  const auto one = [&](int64_t i) {
    const float value = static_cast<float>(x[i]), gated = value * gate;
    sum += other != nullptr ? value * static_cast<float>(other[i]) : gated;
    if (y != nullptr) y[i] = static_cast<T>(gated + shift);
  };
  for (int64_t i = begin + lane; i < head; i += LANES) one(i);
  for (int64_t i = head + lane * V; i < tail; i += LANES * V) {
    const auto b_x = load<V>(x + i);
    Vector<T, V> b_other, b_y;
    if (other != nullptr) b_other = load<V>(other + i);
    for (int v = 0; v < V; ++v) {
      const float value = static_cast<float>(b_x.at[v]), gated = value * gate;
      sum += other != nullptr ? value * static_cast<float>(b_other.at[v]) : gated;
      b_y.at[v] = static_cast<T>(gated + shift);
    }
    if (y != nullptr) store(y + i, b_y);
  }
  for (int64_t i = tail + lane; i < end; i += LANES) one(i);
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
void launch_rows(const Modulate& call, cudaStream_t stream) {
  int columns = 1;
  while (columns < LANES && columns * V < call.width) columns *= 2;
  const int64_t rows = call.samples * call.rows, group_rows = call.sums != nullptr ? call.rows : rows;
  const int64_t chunks = divide_up(group_rows, call.chunk);
  const dim3 grid(
      static_cast<unsigned>(rows / group_rows * chunks), static_cast<unsigned>(divide_up(call.width, columns * V)));
  launch(
      modulate_rows_kernel<T, V>, grid, dim3(columns, THREADS / columns), 0, stream, call, static_cast<int>(group_rows),
      static_cast<int>(chunks));
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
