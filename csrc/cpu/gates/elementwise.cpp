#include "gates/elementwise.h"

#include <algorithm>

#include "base/matrix_view.h"
#include "base/parallel.h"
#include "base/partition.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Tasks that share few images.
constexpr int64_t kSharedTasks = 8;
// Elements below which a thread costs more than it saves.
constexpr int64_t kSerialElements = 1 << 15;

}  // namespace

bool has_channels(const at::Tensor& t, int64_t dim) {
  return t.is_contiguous() || (t.dim() == 4 && dim == 1 && t.is_contiguous(at::MemoryFormat::ChannelsLast));
}

Channels channels_of(const at::Tensor& t, int64_t dim) {
  if (!t.is_contiguous()) {
    return {t.numel() / std::max<int64_t>(1, t.size(1)), t.size(1), 1};
  }
  Channels shape{1, t.size(dim), 1};
  for (int64_t d = 0; d < t.dim(); ++d) {
    (d < dim ? shape.outer : shape.inner) *= d == dim ? 1 : t.size(d);
  }
  return shape;
}

Elementwise::Elementwise(const Channels& shape, int64_t samples)
    : shape_(shape),
      per_sample_(shape.outer / samples),
      rows_(
          shape.inner == 1
              ? row_tasks(shape.outer, per_sample_, 2 * shape.channels, micro_kernel_grain(micro_kernels().mr))
              : RowTasks{shape.outer, per_sample_, shape.outer}) {
}

std::vector<std::pair<int64_t, int64_t>> Elementwise::samples() const {
  return rows_.samples();
}

void Elementwise::run(
    const at::Tensor& x, const at::Tensor& y, const at::Tensor& other, const Gates* gates, ClassSums* sums) const {
  if (shape_.inner != 1) {
    return run_lines(x, y, other, gates, sums);
  }
  const MatrixView target = y.defined() && gates != nullptr ? MatrixView(y, shape_.channels) : MatrixView();
  if (target || sums != nullptr) {
    gate_rows(
        MatrixView(x, shape_.channels), target, sums != nullptr ? MatrixView(other, shape_.channels) : MatrixView(),
        gates, rows_, sums);
  }
}

void Elementwise::run_lines(
    const at::Tensor& x, const at::Tensor& y, const at::Tensor& other, const Gates* gates, ClassSums* sums) const {
  const MicroKernels& kernel = micro_kernels();
  const int64_t channels = shape_.channels, inner = shape_.inner;
  const bool writes = y.defined() && gates != nullptr;
  const MatrixView from(x, inner), to = writes ? MatrixView(y, inner) : MatrixView();
  const MatrixView factor = sums != nullptr ? MatrixView(other, inner) : MatrixView();
  const auto type = static_cast<int>(from.type);
  const int64_t parts = std::clamp<int64_t>(kSharedTasks / std::max<int64_t>(1, shape_.outer), 1, channels);
  for_each_task(shape_.outer * parts, x.numel() > kSerialElements, [&](int64_t task) {
    const int64_t row = task / parts, sample = row / per_sample_;
    const float* s = gates != nullptr ? gates->row_or_ones(sample) : nullptr;
    float* sum = sums != nullptr ? sums->row(row, sample) : nullptr;
    const int64_t last = part_start(channels, parts, task % parts + 1);
    for (int64_t channel = part_start(channels, parts, task % parts); channel < last; ++channel) {
      const int64_t line = row * channels + channel;
      if (sum != nullptr) {
        sum[channel] = kernel.reduce_line[type](
            from.at(line), factor.at(line), writes ? s[channel] : 1.0f, writes ? to.at(line) : nullptr, inner);
      } else if (writes) {
        kernel.scale_line[type](from.at(line), s[channel], to.at(line), inner);
      }
    }
  });
}

}  // namespace memmod::cpu
