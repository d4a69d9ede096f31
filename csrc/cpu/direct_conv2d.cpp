#include "direct_conv2d.h"

#include <algorithm>
#include <vector>

#include "multiply.h"

namespace memmod::cpu {
namespace {

// Elements of the gated gradient that a backward's task holds: 256 KiB, half of a second-level cache.
constexpr int64_t kBandElements = 1 << 16;
// Pixels of a task below which it takes several images.
constexpr int64_t kBandPixels = 96;
constexpr int64_t kSharedTasks = 8;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -ceil_div(-a, b);
}

// What a tap reads beside the image.
const float* zeros(int64_t count) {
  thread_local std::vector<float> buffer;
  if (static_cast<int64_t>(buffer.size()) < count) {
    buffer.assign(count, 0.0f);
  }
  return buffer.data();
}

Rows& thread_rows() {
  thread_local Rows rows;
  return rows;
}

bool worth_threads(const ConvShape& shape) {
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  return 2 * pixels * shape.units * shape.inputs * shape.taps() > kSerialOperations;
}

std::vector<int64_t> all_taps(const ConvShape& shape) {
  std::vector<int64_t> taps(shape.taps());
  for (size_t tap = 0; tap < taps.size(); ++tap) {
    taps[tap] = static_cast<int64_t>(tap);
  }
  return taps;
}

}  // namespace

void run(const ConvForward& layer, const ConvShape& shape, const Packed& weight) {
  const auto& [stride, padding, dilation, groups] = shape.options;
  const int64_t image_pixels = shape.out_height * shape.out_width, pixels = shape.images * image_pixels;
  const Partition parts =
      partition(pixels, weight.panels(), 2 * shape.inputs * shape.units * shape.taps());
  const std::vector<int64_t> taps = all_taps(shape);
  Epilogue epilogue;
  epilogue.bias = layer.bias;
  epilogue.bias_first = layer.gate_bias;
  epilogue.gated = layer.gates != nullptr;
  epilogue.kept = layer.kept != nullptr;
  epilogue.keep_product = layer.keep_product;
  for_each_task(parts.tasks(), worth_threads(shape), [&](int64_t task) {
    const int64_t first = part_start(pixels, parts.row_parts, task / parts.column_parts);
    const int64_t last = part_start(pixels, parts.row_parts, task / parts.column_parts + 1);
    const int64_t column_part = task % parts.column_parts;
    const float* beside = zeros(shape.inputs);
    Rows& rows = thread_rows();
    rows.reset(last - first, shape.taps());
    rows.place([&](int64_t row, const float** places) {
      const int64_t pixel = first + row, image = pixel / image_pixels;
      const int64_t y = pixel % image_pixels / shape.out_width * stride[0] - padding[0];
      const int64_t x = pixel % shape.out_width * stride[1] - padding[1];
      const float* corner = layer.x + image * shape.height * shape.width * shape.inputs;
      for (int64_t i = 0; i < shape.kernel_height; ++i) {
        const int64_t from_y = y + i * dilation[0];
        const bool inside = from_y >= 0 && from_y < shape.height;
        for (int64_t j = 0; j < shape.kernel_width; ++j, places += kMaxRows) {
          const int64_t from_x = x + j * dilation[1];
          *places = inside && from_x >= 0 && from_x < shape.width
                        ? corner + (from_y * shape.width + from_x) * shape.inputs
                        : beside;
        }
      }
      rows.out[row] = layer.y + pixel * shape.units;
      rows.kept[row] = layer.kept == nullptr ? nullptr : layer.kept + pixel * shape.units;
      rows.gates[row] = layer.gates == nullptr ? nullptr : layer.gates->row_or_ones(image / layer.images_per_sample);
    });
    multiply(
        rows, weight, taps.data(), part_start(weight.panels(), parts.column_parts, column_part),
        part_start(weight.panels(), parts.column_parts, column_part + 1), epilogue);
  });
}

Bands::Bands(const ConvShape& shape) : images_(shape.images), groups_(shape.images), bands_(1) {
  const int64_t row = shape.out_width * shape.units;
  const int64_t halo = (shape.kernel_height - 1) * shape.options.dilation[0] / shape.options.stride[0];
  if (row * shape.out_height > kBandElements) {
    const int64_t most = std::max<int64_t>(1, kBandElements / row - halo);
    bands_ = std::min(ceil_div(shape.out_height, most), shape.height);
    return;
  }
  const int64_t pixels = shape.height * shape.width;
  const int64_t together = std::max<int64_t>(
      1, std::min(kBandPixels / pixels, kBandElements / std::max<int64_t>(1, row * shape.out_height)));
  groups_ = std::max(ceil_div(images_, together), std::min(images_, kSharedTasks));
}

std::vector<std::pair<int64_t, int64_t>> Bands::samples(int64_t images_per_sample) const {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  ranges.reserve(tasks());
  for (int64_t task = 0; task < tasks(); ++task) {
    ranges.emplace_back(first_image(task) / images_per_sample, (last_image(task) - 1) / images_per_sample + 1);
  }
  return ranges;
}

namespace {

// The taps that reach the pixels of one phase of a strided convolution, and how far from them they read.
struct Phase {
  int64_t y, x;
  std::vector<int64_t> taps, from_y, from_x;
};

// Pixel (y, x) of dx reads dz at ((y + padding − i · dilation) / stride, …) for the taps (i, j) that divide evenly;
// which ones do is the same for all pixels of a phase.
std::vector<Phase> phases_of(const ConvShape& shape) {
  const auto& [stride, padding, dilation, groups] = shape.options;
  std::vector<Phase> phases;
  for (int64_t y = 0; y < stride[0]; ++y) {
    for (int64_t x = 0; x < stride[1]; ++x) {
      Phase phase{y, x, {}, {}, {}};
      for (int64_t i = 0; i < shape.kernel_height; ++i) {
        for (int64_t j = 0; j < shape.kernel_width; ++j) {
          const int64_t up = y + padding[0] - i * dilation[0], left = x + padding[1] - j * dilation[1];
          if (up % stride[0] == 0 && left % stride[1] == 0) {
            phase.taps.push_back(i * shape.kernel_width + j);
            phase.from_y.push_back(up / stride[0]);
            phase.from_x.push_back(left / stride[1]);
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

void run(const ConvBackward& layer, const ConvShape& shape, const Packed& weight) {
  const Kernels& kernel = kernels();
  const auto& [stride, padding, dilation, groups] = shape.options;
  const Bands bands(shape);
  const std::vector<Phase> phases = phases_of(shape);
  const int64_t row_size = shape.out_width * shape.units;
  constexpr auto kType = static_cast<int>(Type::kFloat);
  for_each_task(bands.tasks(), worth_threads(shape), [&](int64_t task) {
    const int64_t first_image = bands.first_image(task), images = bands.last_image(task) - first_image;
    const auto [top, bottom] = bands.band(task, shape.height);
    const auto [own_top, own_bottom] = bands.band(task, shape.out_height);
    // Rows of dz that the task's rows of dx read, and those whose products it adds up.
    const int64_t reach = (shape.kernel_height - 1) * dilation[0];
    const int64_t first_read = std::max<int64_t>(0, floor_div(top + padding[0] - reach, stride[0]));
    const int64_t last_read = std::min(shape.out_height, floor_div(bottom - 1 + padding[0], stride[0]) + 1);
    const int64_t first = std::min(first_read, own_top), last = std::max({last_read, own_bottom, first});
    const int64_t held = last - first;
    const float* dz = layer.dy + (first_image * shape.out_height + first) * row_size;
    int64_t image_size = shape.out_height * row_size;
    thread_local std::vector<float> buffer;
    if (layer.gates != nullptr) {
      if (static_cast<int64_t>(buffer.size()) < images * held * row_size) {
        buffer.resize(images * held * row_size);
      }
      for (int64_t image = 0; image < images; ++image) {
        const int64_t sample = (first_image + image) / layer.images_per_sample;
        const float* s = layer.gates->row(sample);
        float* sum = layer.sums != nullptr ? layer.sums->row(task, sample) : nullptr;
        const int64_t start = ((first_image + image) * shape.out_height + first) * row_size;
        const auto gate = [&](int64_t from, int64_t to, float* sums) {
          const int64_t at = (from - first) * row_size, pixels = (to - from) * shape.out_width;
          const float* dy = layer.dy + start + at;
          float* out = buffer.data() + image * held * row_size + at;
          if (sums != nullptr) {
            add_products_and_widen(
                Type::kFloat, dy, layer.saved + start + at, shape.units, s, out, shape.units,
                kernel.lanes, sums, pixels, shape.units);
          } else {
            kernel.widen_rows[kType](dy, shape.units, s, out, shape.units, kernel.lanes, pixels, shape.units);
          }
        };
        gate(first, own_top, nullptr);
        gate(own_top, own_bottom, sum);
        gate(own_bottom, last, nullptr);
      }
      dz = buffer.data();
      image_size = held * row_size;
    }
    const float* beside = zeros(shape.units);
    Rows& rows = thread_rows();
    for (const Phase& phase : phases) {
      const int64_t first_y = first_of_phase(top, phase.y, stride[0]), first_x = phase.x;
      const int64_t tall = first_y < bottom ? (bottom - 1 - first_y) / stride[0] + 1 : 0;
      const int64_t wide = first_x < shape.width ? (shape.width - 1 - first_x) / stride[1] + 1 : 0;
      const int64_t count = images * tall * wide;
      if (count == 0) {
        continue;
      }
      const auto taps = static_cast<int64_t>(phase.taps.size());
      const auto target = [&](int64_t row) {
        const int64_t y = first_y + row / wide % tall * stride[0], x = first_x + row % wide * stride[1];
        const int64_t image = first_image + row / (wide * tall);
        return layer.dx + ((image * shape.height + y) * shape.width + x) * shape.inputs;
      };
      if (taps == 0) {
        for (int64_t row = 0; row < count; ++row) {
          std::fill_n(target(row), shape.inputs, 0.0f);
        }
        continue;
      }
      rows.reset(count, taps);
      rows.place([&](int64_t row, const float** places) {
        const int64_t y = (first_y - phase.y) / stride[0] + row / wide % tall, x = row % wide;
        const float* image = dz + row / (wide * tall) * image_size;
        for (int64_t tap = 0; tap < taps; ++tap, places += kMaxRows) {
          const int64_t from_y = y + phase.from_y[tap], from_x = x + phase.from_x[tap];
          const bool inside = from_y >= 0 && from_y < shape.out_height && from_x >= 0 && from_x < shape.out_width;
          *places = inside ? image + ((from_y - first) * shape.out_width + from_x) * shape.units : beside;
        }
        rows.out[row] = target(row);
      });
      multiply(rows, weight, phase.taps.data(), 0, weight.panels(), Epilogue{});
    }
  });
}

}  // namespace memmod::cpu
