#include "direct_conv2d.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "multiply.h"

namespace memmod::cpu {
namespace {

// Elements of the gated gradient that a backward's task holds: 256 KiB, half of a second-level cache.
constexpr int64_t kBandElements = 1 << 16;
// Pixels of a task below which it takes several images.
constexpr int64_t kBandPixels = 96;
constexpr int64_t kSharedTasks = 8;
// Elements of the image that a forward's task reads anew: 128 KiB.
constexpr int64_t kTaskElements = 1 << 15;
constexpr int64_t kFewestTasks = 32;

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

// Where the taps of a sum read, from the pixel that a row's first tap would read: in pixels, in ascending order.
struct Taps {
  std::vector<int64_t> index;  // in the packed weight
  std::vector<int64_t> y, x;
  int64_t run = 1;  // taps that are neighbours in the image and in the packed weight

  int64_t count() const {
    return static_cast<int64_t>(index.size());
  }
};

// The part of an image that rows read: pixels [top, bottom) by [0, width).
struct Region {
  int64_t top, bottom, width, channels;
};

// The pixel that a row counts its taps from; it may lie beside the image.
struct Pixel {
  const float* image;  // the first pixel of the row's region
  int64_t y, x;
};

// Fills the pointers of all tiles: the taps' pixels, or zeros beside the region. pixel_of(row) in ascending order.
template <typename PixelOf>
void place(Rows& rows, const Taps& taps, const Region& region, const PixelOf& pixel_of) {
  const float* beside = zeros(region.channels);
  const auto [low_y, high_y] = std::minmax_element(taps.y.begin(), taps.y.end());
  const auto [low_x, high_x] = std::minmax_element(taps.x.begin(), taps.x.end());
  const int64_t pitch = region.width * region.channels;
  thread_local std::vector<int64_t> offsets;
  offsets.resize(taps.count());
  for (int64_t tap = 0; tap < taps.count(); ++tap) {
    offsets[tap] = taps.y[tap] * pitch + taps.x[tap] * region.channels;
  }
  for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
    const int64_t first = rows.tile_start(tile), count = rows.tile_start(tile + 1) - first;
    const float** places = rows.a(tile);
    std::array<Pixel, kMaxRows> pixels;
    std::array<const float*, kMaxRows> bases;
    bool within_x = true, within_y = true;
    for (int64_t r = 0; r < count; ++r) {
      pixels[r] = pixel_of(first + r);
      within_x = within_x && pixels[r].x + *low_x >= 0 && pixels[r].x + *high_x < region.width;
      within_y = within_y && pixels[r].y + *low_y >= region.top && pixels[r].y + *high_y < region.bottom;
    }
    if (within_x && within_y) {
      for (int64_t r = 0; r < count; ++r) {
        bases[r] = pixels[r].image + ((pixels[r].y - region.top) * region.width + pixels[r].x) * region.channels;
      }
      for (int64_t tap = 0; tap < taps.count(); ++tap, places += kMaxRows) {
        for (int64_t r = 0; r < count; ++r) {
          places[r] = bases[r] + offsets[tap];
        }
      }
      rows.set_joined(tile, true);
      continue;
    }
    for (int64_t tap = 0; tap < taps.count(); ++tap, places += kMaxRows) {
      for (int64_t r = 0; r < count; ++r) {
        const int64_t y = pixels[r].y + taps.y[tap], x = pixels[r].x + taps.x[tap];
        const bool inside = y >= region.top && y < region.bottom && x >= 0 && x < region.width;
        places[r] = inside ? pixels[r].image + ((y - region.top) * region.width + x) * region.channels : beside;
      }
    }
  }
}

Taps forward_taps(const ConvShape& shape) {
  Taps taps;
  for (int64_t i = 0; i < shape.kernel_height; ++i) {
    for (int64_t j = 0; j < shape.kernel_width; ++j) {
      taps.index.push_back(taps.count());
      taps.y.push_back(i * shape.options.dilation[0]);
      taps.x.push_back(j * shape.options.dilation[1]);
    }
  }
  taps.run = shape.options.dilation[1] == 1 ? shape.kernel_width : 1;
  return taps;
}

// Tasks of a forward: so many pixels that their rows of the image stay in the second-level cache, as the next row of
// pixels reads most of them again.
Partition forward_partition(const ConvShape& shape, int64_t panels) {
  const int64_t pixels = shape.images * shape.out_height * shape.out_width;
  Partition parts = partition(pixels, panels, 2 * shape.inputs * shape.units * shape.taps());
  const int64_t together = std::max<int64_t>(1, kTaskElements / shape.inputs);
  parts.row_parts = std::clamp(ceil_div(pixels, together), std::min(parts.row_parts, kFewestTasks), parts.row_parts);
  return parts;
}

}  // namespace

Epilogue epilogue_of(const ConvForward& layer) {
  Epilogue epilogue;
  epilogue.bias = layer.bias;
  epilogue.bias_first = layer.gate_bias;
  epilogue.gated = layer.gates != nullptr;
  epilogue.kept = layer.kept != nullptr;
  epilogue.keep_product = layer.keep_product;
  epilogue.relu = layer.relu;
  return epilogue;
}

void run(const ConvForward& layer, const ConvShape& shape, const Packed& weight) {
  const auto& [stride, padding, dilation, groups] = shape.options;
  const int64_t image_pixels = shape.out_height * shape.out_width, pixels = shape.images * image_pixels;
  const Partition parts = forward_partition(shape, weight.panels());
  const Taps taps = forward_taps(shape);
  const Epilogue epilogue = epilogue_of(layer);
  for_each_task(parts.tasks(), worth_threads(shape), [&](int64_t task) {
    const int64_t first = parts.row_start(pixels, task / parts.column_parts);
    const int64_t last = parts.row_start(pixels, task / parts.column_parts + 1);
    const int64_t column_part = task % parts.column_parts;
    Rows& rows = thread_rows();
    rows.reset(last - first, taps.count(), taps.run);
    int64_t image = first / image_pixels, y = first % image_pixels / shape.out_width, x = first % shape.out_width;
    place(rows, taps, {0, shape.height, shape.width, shape.inputs}, [&](int64_t row) {
      const Pixel pixel{
          layer.x + image * shape.height * shape.width * shape.inputs, y * stride[0] - padding[0],
          x * stride[1] - padding[1]};
      rows.out[row] = layer.y + (first + row) * shape.units;
      rows.kept[row] = layer.kept == nullptr ? nullptr : layer.kept + (first + row) * shape.units;
      rows.gates[row] = layer.gates == nullptr ? nullptr : layer.gates->row_or_ones(image / layer.images_per_sample);
      if (++x == shape.out_width) {
        x = 0;
        y = y + 1 == shape.out_height ? 0 : y + 1;
        image += y == 0 ? 1 : 0;
      }
      return pixel;
    });
    multiply(
        rows, weight, taps.index.data(), part_start(weight.panels(), parts.column_parts, column_part),
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

// The pixels of dx that are equal modulo the stride, and the taps that reach them.
struct Phase {
  int64_t y, x;
  Taps taps;
};

// Pixel (y, x) of dx reads dz at ((y + padding − i · dilation) / stride, …) for the taps (i, j) that divide evenly;
// which ones do is the same for all pixels of a phase. Taps from last to first, as they are packed: dz in ascending
// order.
std::vector<Phase> phases_of(const ConvShape& shape) {
  const auto& [stride, padding, dilation, groups] = shape.options;
  std::vector<Phase> phases;
  for (int64_t y = 0; y < stride[0]; ++y) {
    for (int64_t x = 0; x < stride[1]; ++x) {
      Phase phase{y, x, {}};
      for (int64_t i = shape.kernel_height - 1; i >= 0; --i) {
        for (int64_t j = shape.kernel_width - 1; j >= 0; --j) {
          const int64_t up = y + padding[0] - i * dilation[0], left = x + padding[1] - j * dilation[1];
          if (up % stride[0] == 0 && left % stride[1] == 0) {
            phase.taps.index.push_back(shape.taps() - 1 - (i * shape.kernel_width + j));
            phase.taps.y.push_back(up / stride[0]);
            phase.taps.x.push_back(left / stride[1]);
          }
        }
      }
      phase.taps.run = stride[1] == 1 && dilation[1] == 1 ? shape.kernel_width : 1;
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
        const float* s = layer.relu ? layer.gates->row_or_ones(sample) : layer.gates->row(sample);
        float* sum = layer.sums != nullptr ? layer.sums->row(task, sample) : nullptr;
        float* unread = layer.relu ? unread_sums(shape.units) : nullptr;
        const int64_t start = ((first_image + image) * shape.out_height + first) * row_size;
        const auto gate = [&](int64_t from, int64_t to, float* sums) {
          const int64_t at = (from - first) * row_size, pixels = (to - from) * shape.out_width;
          const float* dy = layer.dy + start + at;
          float* out = buffer.data() + image * held * row_size + at;
          if (sums != nullptr) {
            add_products_and_widen(
                Type::kFloat, layer.relu, dy, layer.saved + start + at, shape.units, s, out, shape.units, kernel.lanes,
                sums, pixels, shape.units);
          } else {
            kernel.widen_rows[kType](dy, shape.units, s, out, shape.units, kernel.lanes, pixels, shape.units);
          }
        };
        gate(first, own_top, unread);
        gate(own_top, own_bottom, sum != nullptr ? sum : unread);
        gate(own_bottom, last, unread);
      }
      dz = buffer.data();
      image_size = held * row_size;
    }
    Rows& rows = thread_rows();
    for (const Phase& phase : phases) {
      const int64_t first_y = first_of_phase(top, phase.y, stride[0]), first_x = phase.x;
      const int64_t tall = first_y < bottom ? (bottom - 1 - first_y) / stride[0] + 1 : 0;
      const int64_t wide = first_x < shape.width ? (shape.width - 1 - first_x) / stride[1] + 1 : 0;
      const int64_t count = images * tall * wide;
      if (count == 0) {
        continue;
      }
      const auto target = [&](int64_t row) {
        const int64_t y = first_y + row / wide % tall * stride[0], x = first_x + row % wide * stride[1];
        const int64_t image = first_image + row / (wide * tall);
        return layer.dx + ((image * shape.height + y) * shape.width + x) * shape.inputs;
      };
      if (phase.taps.count() == 0) {
        for (int64_t row = 0; row < count; ++row) {
          std::fill_n(target(row), shape.inputs, 0.0f);
        }
        continue;
      }
      rows.reset(count, phase.taps.count(), phase.taps.run);
      const int64_t first_row = (first_y - phase.y) / stride[0];
      int64_t image = 0, y = 0, x = 0;
      place(rows, phase.taps, {first, first + held, shape.out_width, shape.units}, [&](int64_t row) {
        const Pixel pixel{dz + image * image_size, first_row + y, x};
        rows.out[row] = layer.dx + (((first_image + image) * shape.height + first_y + y * stride[0]) * shape.width +
                                    first_x + x * stride[1]) *
                                       shape.inputs;
        if (++x == wide) {
          x = 0;
          y = y + 1 == tall ? 0 : y + 1;
          image += y == 0 ? 1 : 0;
        }
        return pixel;
      });
      multiply(rows, weight, phase.taps.index.data(), 0, weight.panels(), Epilogue{});
    }
  });
}

}  // namespace memmod::cpu
