// memmod::modulate_output on the CPU, sigmoid gate: y = s ⊙ x along a channel dim, and its gradients in one pass.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <array>
#include <cstring>
#include <optional>
#include <string_view>
#include <tuple>

#include "gates.h"

// Compiled for several vector widths, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MEMMOD_VECTORISED __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define MEMMOD_VECTORISED
#endif

namespace memmod::cpu {
namespace {

constexpr int64_t kLanes = 16;
// Elements that fp32 lanes sum before they are added up in fp64.
constexpr int64_t kSumBlock = 4096;
// Pixels or tokens whose products one partial sum holds where channels are innermost.
constexpr int64_t kRowsPerPartial = 32;

// A dense tensor as [samples, outer, channels, inner]; the rows of one sample are part of outer.
struct View {
  int64_t samples, outer, channels, inner;
};

View view_of(const at::Tensor& t, int64_t dim, int64_t samples, int64_t width) {
  TORCH_CHECK_VALUE(
      dim > 0 && dim < t.dim() && t.size(dim) == width, "memmod: x of shape ", t.sizes(), " cannot be gated along dim ",
      dim, " by a memory of width ", width);
  TORCH_CHECK_VALUE(
      samples > 0 && t.size(0) % samples == 0, "memmod: ", t.size(0), " rows do not belong to ", samples, " samples");
  if (t.is_contiguous()) {
    int64_t outer = t.size(0) / samples, inner = 1;
    for (int64_t d = 1; d < dim; ++d) {
      outer *= t.size(d);
    }
    for (int64_t d = dim + 1; d < t.dim(); ++d) {
      inner *= t.size(d);
    }
    return {samples, outer, width, inner};
  }
  TORCH_CHECK_VALUE(
      dim == 1 && t.dim() == 4 && t.is_contiguous(at::MemoryFormat::ChannelsLast),
      "memmod: the kernel needs contiguous or channels_last tensors, not strides ", t.strides());
  return {samples, t.size(0) / samples * t.size(2) * t.size(3), width, 1};
}

// One channel's `count` consecutive elements times one gate.
template <typename T>
inline void scale_line(const T* x, float s, T* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] = static_cast<T>(static_cast<float>(x[i]) * s);
  }
}

// Lines [begin, end) of x, each one channel of one row.
template <typename T>
MEMMOD_VECTORISED void scale_lines(const T* x, T* y, const View& v, const Gates& gates, int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const float s = gates.row(line / (v.outer * v.channels))[line % v.channels];
    scale_line(x + line * v.inner, s, y + line * v.inner, v.inner);
  }
}

// Rows [begin, end) of x, each with all channels side by side.
template <typename T>
MEMMOD_VECTORISED void scale_rows(const T* x, T* y, const View& v, const Gates& gates, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* s = gates.row(row / v.outer);
    const T* from = x + row * v.channels;
    T* to = y + row * v.channels;
    for (int64_t c = 0; c < v.channels; ++c) {
      to[c] = static_cast<T>(static_cast<float>(from[c]) * s[c]);
    }
  }
}

// y (and a second copy of it in `kept`, if given) = s ⊙ x.
template <typename T>
void scale(const T* x, T* y, T* kept, const View& v, const Gates& gates) {
  const int64_t width = v.inner == 1 ? v.channels : v.inner;
  const int64_t tasks = v.samples * v.outer * (v.inner == 1 ? 1 : v.channels);
  at::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / width), [&](int64_t begin, int64_t end) {
    v.inner == 1 ? scale_rows(x, y, v, gates, begin, end) : scale_lines(x, y, v, gates, begin, end);
    if (kept != nullptr) {
      std::memcpy(kept + begin * width, y + begin * width, (end - begin) * width * sizeof(T));
    }
  });
}

// Σ dy ⊙ y over one line; dx = s ⊙ dy on the way, if wanted.
template <typename T, bool kWithInput>
inline float reduce_line(const T* dy, const T* y, T* dx, float s, int64_t count) {
  double total = 0;
  for (int64_t first = 0; first < count; first += kSumBlock) {
    const int64_t last = std::min(count, first + kSumBlock);
    std::array<float, kLanes> lanes{};
    int64_t i = first;
    for (; i + kLanes <= last; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) {
        const float d = static_cast<float>(dy[i + l]);
        lanes[l] += d * static_cast<float>(y[i + l]);
        if constexpr (kWithInput) {
          dx[i + l] = static_cast<T>(d * s);
        }
      }
    }
    for (int64_t l = 0; i < last; ++i, ++l) {
      const float d = static_cast<float>(dy[i]);
      lanes[l] += d * static_cast<float>(y[i]);
      if constexpr (kWithInput) {
        dx[i] = static_cast<T>(d * s);
      }
    }
    for (const float lane : lanes) {
      total += lane;
    }
  }
  return static_cast<float>(total);
}

// Lines [begin, end): one partial sum each.
template <typename T, bool kWithInput>
MEMMOD_VECTORISED void reduce_lines(
    const T* dy, const T* y, T* dx, float* partial, const View& v, const Gates& gates, int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const float s = gates.row(line / (v.outer * v.channels))[line % v.channels];
    const int64_t at = line * v.inner;
    partial[line] = reduce_line<T, kWithInput>(dy + at, y + at, kWithInput ? dx + at : nullptr, s, v.inner);
  }
}

// Groups [begin, end) of kRowsPerPartial rows of one sample: one row of partial sums each.
template <typename T, bool kWithInput>
MEMMOD_VECTORISED void reduce_rows(
    const T* dy, const T* y, T* dx, float* partial, const View& v, const Gates& gates, int64_t begin, int64_t end) {
  const int64_t groups = (v.outer + kRowsPerPartial - 1) / kRowsPerPartial;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t sample = group / groups, first = group % groups * kRowsPerPartial;
    const float* s = gates.row(sample);
    float* sum = partial + group * v.channels;
    std::fill_n(sum, v.channels, 0.0f);
    for (int64_t row = first; row < std::min(v.outer, first + kRowsPerPartial); ++row) {
      const int64_t at = (sample * v.outer + row) * v.channels;
      for (int64_t c = 0; c < v.channels; ++c) {
        const float d = static_cast<float>(dy[at + c]);
        sum[c] += d * static_cast<float>(y[at + c]);
        if constexpr (kWithInput) {
          dx[at + c] = static_cast<T>(d * s[c]);
        }
      }
    }
  }
}

// Each sample's sums [B, K] from its partial sums [B, parts, K], in ascending order.
void add_partials(const float* partial, float* sums, int64_t samples, int64_t parts, int64_t width) {
  constexpr int64_t kBlock = 256;
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  const int64_t grain = std::max<int64_t>(1, kGrain / (parts * std::min(width, kBlock)));
  at::parallel_for(0, samples * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks, first = task % blocks * kBlock;
      const int64_t count = std::min(kBlock, width - first);
      double total[kBlock] = {};
      for (int64_t p = 0; p < parts; ++p) {
        const float* row = partial + (b * parts + p) * width + first;
        for (int64_t k = 0; k < count; ++k) {
          total[k] += row[k];
        }
      }
      for (int64_t k = 0; k < count; ++k) {
        sums[b * width + first + k] = static_cast<float>(total[k]);
      }
    }
  });
}

// Reads dy and y once: writes dx, unless it is null, and each sample's sums [B, K] of dy ⊙ y.
template <typename T>
at::Tensor reduce(const T* dy, const T* y, T* dx, const View& v, const Gates& gates) {
  const bool rows = v.inner == 1;
  const int64_t parts = rows ? (v.outer + kRowsPerPartial - 1) / kRowsPerPartial : v.outer;
  const int64_t tasks = v.samples * parts * (rows ? 1 : v.channels);
  const int64_t size = rows ? std::min(v.outer, kRowsPerPartial) * v.channels : v.inner;
  const auto options = at::TensorOptions().dtype(at::kFloat);
  at::Tensor partials = at::empty({v.samples, parts, v.channels}, options);
  float* partial = partials.mutable_data_ptr<float>();
  at::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    const auto run = rows ? (dx ? reduce_rows<T, true> : reduce_rows<T, false>)
                          : (dx ? reduce_lines<T, true> : reduce_lines<T, false>);
    run(dy, y, dx, partial, v, gates, begin, end);
  });
  if (parts == 1) {
    return partials;
  }
  at::Tensor sums = at::empty({v.samples, v.channels}, options);
  add_partials(partial, sums.mutable_data_ptr<float>(), v.samples, parts, v.channels);
  return sums;
}

void check(const at::Tensor& x, const at::Tensor& memory, std::string_view gate) {
  TORCH_CHECK_VALUE(gate == "sigmoid", "memmod: the CPU kernel has no gate '", gate, "'");
  TORCH_CHECK_TYPE(
      memory.dim() == 2 && memory.scalar_type() == at::kFloat, "memmod: memory is ", memory.scalar_type(), " of shape ",
      memory.sizes(), ", it must be fp32 [C, K]");
  TORCH_CHECK_VALUE(x.dim() >= 2, "memmod: x has shape ", x.sizes(), ", it must be [rows, ..., channels, ...]");
}

template <typename Run>
void with_dtype(const at::Tensor& x, const Run& run) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return run(float{});
    case at::kBFloat16:
      return run(at::BFloat16{});
    case at::kHalf:
      return run(at::Half{});
    default:
      TORCH_CHECK_TYPE(false, "memmod: the CPU kernel has no ", x.scalar_type(), ", it serves fp32, bf16 and fp16");
  }
}

std::tuple<at::Tensor, at::Tensor> modulate_output(
    const at::Tensor& x, const at::Tensor& memory, const at::Tensor& index, int64_t dim, std::string_view gate,
    bool keep_gated) {
  check(x, memory, gate);
  const at::Tensor y = at::empty_like(x);
  const at::Tensor kept = keep_gated ? at::empty_like(x) : at::empty({0}, x.options());
  if (x.numel() == 0) {
    return {y, kept};
  }
  const at::Tensor alpha = memory.contiguous();
  const View v = view_of(x, dim < 0 ? dim + x.dim() : dim, index.size(0), alpha.size(1));
  const Gates gates(alpha, read_selection(index, alpha.size(0)));
  with_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    T* copy = keep_gated ? kept.mutable_data_ptr<T>() : nullptr;
    scale(x.const_data_ptr<T>(), y.mutable_data_ptr<T>(), copy, v, gates);
  });
  return {y, kept};
}

std::tuple<at::Tensor, at::Tensor> modulate_output_backward(
    const at::Tensor& dy, const std::optional<at::Tensor>& saved, const at::Tensor& memory, const at::Tensor& index,
    int64_t dim, std::string_view gate, std::array<bool, 2> needs) {
  check(dy, memory, gate);
  const auto [need_dx, need_dmemory] = needs;
  const at::Tensor dx = need_dx ? at::empty_like(dy) : at::empty({0}, dy.options());
  const at::Tensor alpha = memory.contiguous();
  if (dy.numel() == 0 || !(need_dx || need_dmemory)) {
    return {dx, need_dmemory ? at::zeros_like(alpha) : at::empty({0}, memory.options())};
  }
  const View v = view_of(dy, dim < 0 ? dim + dy.dim() : dim, index.size(0), alpha.size(1));
  const Selection selection = read_selection(index, alpha.size(0));
  const Gates gates(alpha, selection);
  at::Tensor dmemory;
  with_dtype(dy, [&](auto zero) {
    using T = decltype(zero);
    const T* from = dy.const_data_ptr<T>();
    T* to = need_dx ? dx.mutable_data_ptr<T>() : nullptr;
    if (!need_dmemory) {
      scale<T>(from, to, nullptr, v, gates);
      dmemory = at::empty({0}, memory.options());
      return;
    }
    TORCH_CHECK_VALUE(
        saved.has_value() && saved->scalar_type() == dy.scalar_type() && saved->sizes() == dy.sizes() &&
            saved->is_contiguous() == dy.is_contiguous(),
        "memmod: the memory's gradient needs the saved output in the shape, dtype and layout of dy");
    const at::Tensor sums = reduce(from, saved->const_data_ptr<T>(), to, v, gates);
    dmemory = memory_gradient(alpha, selection, sums.const_data_ptr<float>());
  });
  return {dx, dmemory};
}

}  // namespace
}  // namespace memmod::cpu

TORCH_LIBRARY(memmod_cpu, library) {
  library.def(
      "modulate_output(Tensor x, Tensor memory, Tensor index, int dim, str gate, bool keep_gated) -> (Tensor, Tensor)");
  library.def(
      "modulate_output_backward(Tensor dy, Tensor? saved, Tensor memory, Tensor index, int dim, str gate, "
      "bool[2] needs) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(memmod_cpu, CPU, library) {
  library.impl("modulate_output", memmod::cpu::modulate_output);
  library.impl("modulate_output_backward", memmod::cpu::modulate_output_backward);
}
