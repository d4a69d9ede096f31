#include "conv/implicit_gemm.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/parallel.h"
#include "base/partition.h"
#include "base/runs.h"
#include "gates/gated_rows.h"
#include "gemm/epilogue.h"
#include "gemm/indirect_gemm.h"
#include "gemm/indirect_rows.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Elements of the gated gradient that a backward's task holds: 256 KiB, half of a second-level cache.
constexpr int64_t kBandElements = 1 << 16;
// Pixels of a task below which it takes several images.
constexpr int64_t kBandPixels = 96;
constexpr int64_t kSharedTasks = 8;
// Elements of the image that a forward's task reads again: 128 KiB.
constexpr int64_t kTaskElements = 1 << 15;
constexpr int64_t kFewestTasks = 32;
// A depthwise convolution computes little, and what its tasks read twice counts more than what a cache holds:
// MobileNetV2's on a Zen 3, two threads, forward and backward: 0.93 of plain with twice the elements, 1.06 with as
// many, 0.96 with four times as many.
constexpr int64_t kDepthwiseShare = 2;

int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -ceil_div(-a, b);
}

IndirectRows& thread_rows() {
  thread_local IndirectRows rows;
  return rows;
}

bool worth_threads(const ConvShape& shape) {
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  return pixels * shape.operations() > kSerialOperations;
}

// Rows and columns of an image, whole rows of it and zeros around them.
struct Window {
  int64_t top, left, bottom, right;

  int64_t pitch() const {
    return right - left;
  }
  int64_t pixels() const {
    return (bottom - top) * pitch();
  }
  // The place of pixel (y, x) of the image.
  int64_t at(int64_t y, int64_t x) const {
    return (y - top) * pitch() + x - left;
  }
};

// Writes a window of an image of height x width pixels: fill(row, to) writes the image's row. Without zeros between, a
// row of a product has one pointer, whatever the taps: 16 channels on 28 x 28 pixels, forward and backward, 0.8 of the
// time of pointers by tap.
template <typename Fill>
void fill_window(const Window& window, int64_t height, int64_t width, int64_t channels, float* to, const Fill& fill) {
  const int64_t left = -window.left * channels, right = (window.right - width) * channels;
  for (int64_t y = window.top; y < window.bottom; ++y, to += window.pitch() * channels) {
    if (y < 0 || y >= height) {
      std::fill_n(to, window.pitch() * channels, 0.0f);
      continue;
    }
    std::fill_n(to, left, 0.0f);
    fill(y, to + left);
    std::fill_n(to + left + width * channels, right, 0.0f);
  }
}

// Adds up products over some pixels before they join a task's sums: shorter chains of sums round less.
class RunningSums {
 public:
  // total: [channels], or null where there is nothing to add up.
  RunningSums(float* total, int64_t channels) : total_(total), channels_(channels) {
  }
  ~RunningSums() {
    flush();
  }
  RunningSums(const RunningSums&) = delete;
  RunningSums& operator=(const RunningSums&) = delete;

  // Where the products of the next `pixels` pixels are added.
  float* next(int64_t pixels) {
    if (pixels_ + pixels > kRowsPerSum) {
      flush();
    }
    if (pixels_ == 0) {
      buffer().assign(channels_, 0.0f);
    }
    pixels_ += pixels;
    return buffer().data();
  }

 private:
  static std::vector<float>& buffer() {
    thread_local std::vector<float> sums;
    return sums;
  }
  void flush() {
    if (pixels_ == 0) {
      return;
    }
    for (int64_t i = 0; i < channels_; ++i) {
      total_[i] += buffer()[i];
    }
    pixels_ = 0;
  }

  float* total_;
  int64_t channels_, pixels_ = 0;
};

// A thread's copies of windows.
float* thread_windows(int64_t elements) {
  thread_local AlignedBuffer<float> buffer;
  return buffer.get(elements);
}

// Tasks of a forward: so many pixels that their rows of the image stay in the second-level cache, as the next row of
// pixels reads most of them again.
Partition forward_partition(const ConvShape& shape, int64_t panels) {
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  Partition parts = partition(pixels, panels, shape.operations(), micro_kernel_grain(micro_kernels().mr));
  const int64_t elements = kTaskElements * (shape.depthwise() ? kDepthwiseShare : 1);
  const int64_t together = std::max<int64_t>(1, elements / shape.inputs);
  parts.row_parts = std::clamp(ceil_div(pixels, together), std::min(parts.row_parts, kFewestTasks), parts.row_parts);
  return parts;
}

void gemm_over_taps(
    const ConvShape& shape, IndirectRows& rows, const PackedWeight& weight, c10::ArrayRef<Tap> taps,
    int64_t first_panel, int64_t last_panel, const Epilogue& epilogue) {
  if (shape.depthwise()) {
    indirect_depthwise(rows, weight, taps, first_panel, last_panel, epilogue);
  } else {
    indirect_gemm(rows, weight, taps, first_panel, last_panel, epilogue);
  }
}

}  // namespace

Epilogue epilogue_of(const ConvForward& layer) {
  return {
      .bias = layer.bias,
      .gate_bias = layer.gate_bias,
      .gated = layer.gates != nullptr,
      .kept = layer.kept != nullptr,
      .save_ungated = layer.save_ungated,
      .relu = layer.relu};
}

void implicit_gemm(const ConvForward& layer, const ConvShape& shape, const PackedWeight& weight) {
  const auto& [stride, padding, dilation, groups] = shape.options;
  const int64_t image_pixels = shape.out_height * shape.out_width, pixels = shape.images * image_pixels;
  const int64_t row_size = shape.width * shape.inputs;
  const int64_t reach_y = (shape.kernel_height - 1) * dilation[0], reach_x = (shape.kernel_width - 1) * dilation[1];
  const int64_t right = std::max(shape.width, (shape.out_width - 1) * stride[1] - padding[1] + reach_x + 1);
  const Partition parts = forward_partition(shape, weight.panels());
  const Epilogue epilogue = epilogue_of(layer);
  std::vector<Tap> taps;
  for (int64_t i = 0; i < shape.kernel_height; ++i) {
    for (int64_t j = 0; j < shape.kernel_width; ++j) {
      const int64_t pixel = i * dilation[0] * (right + padding[1]) + j * dilation[1];
      taps.push_back({pixel * shape.inputs, static_cast<int64_t>(taps.size())});
    }
  }
  for_each_task(parts.tasks(), worth_threads(shape), [&](int64_t task) {
    const int64_t first = parts.row_start(pixels, task / parts.column_parts);
    const int64_t last = parts.row_start(pixels, task / parts.column_parts + 1);
    const int64_t column_part = task % parts.column_parts;
    const int64_t first_image = first / image_pixels, last_image = ceil_div(last, image_pixels);
    // The rows of y that the task has pixels of, and what they read.
    const auto window_of = [&](int64_t image) {
      const int64_t from = std::max<int64_t>(0, first - image * image_pixels) / shape.out_width;
      const int64_t to = ceil_div(std::min(image_pixels, last - image * image_pixels), shape.out_width);
      return Window{from * stride[0] - padding[0], -padding[1], (to - 1) * stride[0] - padding[0] + reach_y + 1, right};
    };
    int64_t copied = 0;
    for (int64_t image = first_image; image < last_image; ++image) {
      copied += window_of(image).pixels() * shape.inputs;
    }
    float* copy = thread_windows(copied);
    IndirectRows& rows = thread_rows();
    rows.reset(last - first);
    int64_t pixel = first;
    for (int64_t image = first_image; image < last_image; ++image) {
      const Window window = window_of(image);
      const int64_t sample = image / layer.images_per_sample;
      const float* s = layer.in == nullptr ? nullptr : layer.in->row(sample);
      const float* gates = layer.gates == nullptr ? nullptr : layer.gates->row_or_ones(sample);
      fill_window(window, shape.height, shape.width, shape.inputs, copy, [&](int64_t y, float* to) {
        micro_kernels().scale_rows[static_cast<int>(Type::kFloat)](
            layer.x + (image * shape.height + y) * row_size, shape.inputs, s, to, shape.inputs, shape.width,
            shape.inputs);
      });
      const int64_t start = image * image_pixels, stop = std::min(last, start + image_pixels);
      for (int64_t y = (pixel - start) / shape.out_width, x = (pixel - start) % shape.out_width; pixel < stop;
           ++y, x = 0) {
        for (; x < shape.out_width && pixel < stop; ++x, ++pixel) {
          const int64_t row = pixel - first;
          rows.a[row] = copy + window.at(y * stride[0] - padding[0], x * stride[1] - padding[1]) * shape.inputs;
          rows.out[row] = layer.y + pixel * shape.units;
          rows.kept[row] = layer.kept == nullptr ? nullptr : layer.kept + pixel * shape.units;
          rows.gates[row] = gates;
        }
      }
      copy += window.pixels() * shape.inputs;
    }
    gemm_over_taps(
        shape, rows, weight, taps, part_start(weight.panels(), parts.column_parts, column_part),
        part_start(weight.panels(), parts.column_parts, column_part + 1), epilogue);
  });
}

ImageTiling::ImageTiling(const ConvShape& shape) : images_(shape.images), groups_(shape.images), bands_(1) {
  const int64_t elements = kBandElements * (shape.depthwise() ? kDepthwiseShare : 1);
  const int64_t row = shape.out_width * shape.units;
  const int64_t halo = (shape.kernel_height - 1) * shape.options.dilation[0] / shape.options.stride[0];
  if (row * shape.out_height > elements) {
    const int64_t most = std::max<int64_t>(1, elements / row - halo);
    bands_ = std::min(ceil_div(shape.out_height, most), shape.height);
    return;
  }
  const int64_t pixels = shape.height * shape.width;
  const int64_t together =
      std::max<int64_t>(1, std::min(kBandPixels / pixels, elements / std::max<int64_t>(1, row * shape.out_height)));
  groups_ = std::max(ceil_div(images_, together), std::min(images_, kSharedTasks));
}

std::vector<std::pair<int64_t, int64_t>> ImageTiling::samples(int64_t images_per_sample) const {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  ranges.reserve(tasks());
  for (int64_t task = 0; task < tasks(); ++task) {
    ranges.emplace_back(first_image(task) / images_per_sample, (last_image(task) - 1) / images_per_sample + 1);
  }
  return ranges;
}

namespace {

// The pixels of dx that are equal modulo the stride, and the taps that reach them.
struct Phase {
  int64_t y, x;
  std::vector<Tap> taps;
};

// Pixel (y, x) of dx reads dz at ((y + padding − i · dilation) / stride, …) for the taps (i, j) that divide evenly;
// which ones do is the same for all pixels of a phase. Taps from last to first, as they are packed: dz in ascending
// order; a depthwise weight is packed from first to last. `pitch`: pixels of a row of the copies of dz.
std::vector<Phase> phases_of(const ConvShape& shape, int64_t pitch) {
  const auto& [stride, padding, dilation, groups] = shape.options;
  std::vector<Phase> phases;
  for (int64_t y = 0; y < stride[0]; ++y) {
    for (int64_t x = 0; x < stride[1]; ++x) {
      Phase phase{y, x, {}};
      for (int64_t i = shape.kernel_height - 1; i >= 0; --i) {
        for (int64_t j = shape.kernel_width - 1; j >= 0; --j) {
          const int64_t up = y + padding[0] - i * dilation[0], left = x + padding[1] - j * dilation[1];
          if (up % stride[0] == 0 && left % stride[1] == 0) {
            const int64_t tap = i * shape.kernel_width + j;
            phase.taps.push_back(
                {(up / stride[0] * pitch + left / stride[1]) * shape.units,
                 shape.depthwise() ? tap : shape.taps() - 1 - tap});
          }
        }
      }
      phases.push_back(std::move(phase));
    }
  }
  return phases;
}

// The first value not below `low` that is `phase` modulo `stride`.
int64_t first_of_phase(int64_t low, int64_t phase, int64_t stride) {
  return low + (phase - low % stride + stride) % stride;
}

}  // namespace

void implicit_gemm_backward(const ConvBackward& layer, const ConvShape& shape, const PackedWeight& weight) {
  const auto& [stride, padding, dilation, groups] = shape.options;
  const ImageTiling tiling(shape);
  const int64_t row_size = shape.out_width * shape.units;
  const int64_t reach_y = (shape.kernel_height - 1) * dilation[0], reach_x = (shape.kernel_width - 1) * dilation[1];
  // What the taps of dx's pixels read, and all of dz.
  const int64_t left = std::min<int64_t>(0, floor_div(padding[1] - reach_x, stride[1]));
  const int64_t right = std::max(shape.out_width, floor_div(shape.width - 1 + padding[1], stride[1]) + 1);
  const std::vector<Phase> phases = phases_of(shape, right - left);
  for_each_task(tiling.tasks(), worth_threads(shape), [&](int64_t task) {
    const int64_t first_image = tiling.first_image(task), images = tiling.last_image(task) - first_image;
    const auto [top, bottom] = tiling.band(task, shape.height);
    const auto [own_top, own_bottom] = tiling.band(task, shape.out_height);
    const int64_t first_read = floor_div(top + padding[0] - reach_y, stride[0]);
    const int64_t last_read = floor_div(bottom - 1 + padding[0], stride[0]) + 1;
    const Window window{std::min(first_read, own_top), left, std::max(last_read, own_bottom), right};
    const int64_t copy_size = window.pixels() * shape.units;
    float* copies = thread_windows(images * copy_size);
    for (int64_t image = 0; image < images; ++image) {
      const int64_t sample = (first_image + image) / layer.images_per_sample;
      const float* s = layer.gates == nullptr ? nullptr
                       : layer.relu           ? layer.gates->row_or_ones(sample)
                                              : layer.gates->row(sample);
      float* sum = layer.sums != nullptr ? layer.sums->row(task, sample) : nullptr;
      RunningSums sums(sum, shape.units);
      fill_window(
          window, shape.out_height, shape.out_width, shape.units, copies + image * copy_size,
          [&](int64_t y, float* to) {
            const int64_t from = ((first_image + image) * shape.out_height + y) * row_size;
            const bool own = sum != nullptr && y >= own_top && y < own_bottom;
            if (own || layer.relu) {
              add_products_and_widen(
                  Type::kFloat, layer.relu, layer.dy + from, layer.saved + from, shape.units, s, to, shape.units,
                  micro_kernels().lanes, own ? sums.next(shape.out_width) : unread_sums(shape.units), shape.out_width,
                  shape.units);
            } else {
              micro_kernels().scale_rows[static_cast<int>(Type::kFloat)](
                  layer.dy + from, shape.units, s, to, shape.units, shape.out_width, shape.units);
            }
          });
    }
    IndirectRows& rows = thread_rows();
    for (const Phase& phase : phases) {
      const int64_t first_y = first_of_phase(top, phase.y, stride[0]), first_x = phase.x;
      const int64_t tall = first_y < bottom ? (bottom - 1 - first_y) / stride[0] + 1 : 0;
      const int64_t wide = first_x < shape.width ? (shape.width - 1 - first_x) / stride[1] + 1 : 0;
      const int64_t count = images * tall * wide;
      if (count == 0) {
        continue;
      }
      rows.reset(count);
      int64_t row = 0;
      for (int64_t image = 0; image < images; ++image) {
        for (int64_t y = 0; y < tall; ++y) {
          const float* from =
              copies + image * copy_size + window.at((first_y - phase.y) / stride[0] + y, 0) * shape.units;
          float* to =
              layer.dx +
              (((first_image + image) * shape.height + first_y + y * stride[0]) * shape.width + first_x) * shape.inputs;
          for (int64_t x = 0; x < wide; ++x, ++row) {
            rows.a[row] = from + x * shape.units;
            rows.out[row] = to + x * stride[1] * shape.inputs;
          }
        }
      }
      if (phase.taps.empty()) {
        for (void* to : rows.out) {
          std::fill_n(static_cast<float*>(to), shape.inputs, 0.0f);
        }
        continue;
      }
      gemm_over_taps(shape, rows, weight, phase.taps, 0, weight.panels(), Epilogue{});
    }
  });
}

}  // namespace memmod::cpu
