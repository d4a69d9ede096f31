// A task copies its rows of the images, with their padding and split into planes, so that a tap of 16 neighbouring
// pixels is a tile of A: 16 rows at one distance. Pixels are counted along the padded rows; what is computed for those
// after the end of a row goes to a place that nobody reads.
#include "conv/implicit_gemm_amx.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/parallel.h"
#include "base/partition.h"
#include "base/runs.h"
#include "conv/conv_shape.h"
#include "gates/gated_rows.h"
#include "gemm/epilogue.h"
#include "gemm/indirect_gemm.h"
#include "gemm/indirect_rows.h"
#include "gemm/pack.h"
#include "micro/amx.h"
#include "micro/cpu_features.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

constexpr int64_t kPlanes = 3;
constexpr int64_t kTileRows = kAmxRows / 2;
// Pixels of a task, at most.
constexpr int64_t kTaskPixels = 1024;
constexpr int64_t kSharedTasks = 8;
// AMX multiplies twice as fast as the tiles; so much of it may be padding, for the copy takes time too.
constexpr double kMostPadding = 1.55;

int64_t whole_chunks(int64_t channels) {
  return ceil_div(channels, kAmxChannels) * kAmxChannels;
}

// A convolution with stride 1: of the images forwards, of their gradients backwards.
struct Plan {
  int64_t images, height, width, channels;  // what is read
  int64_t out_height, out_width, columns;
  int64_t kernel_height, kernel_width, dilation_y, dilation_x, pad_y, pad_x;
  ImageTiling tiling{images, 1, 1};
  int64_t column_parts = 1;

  int64_t reach_y() const {
    return (kernel_height - 1) * dilation_y;
  }
  int64_t reach_x() const {
    return (kernel_width - 1) * dilation_x;
  }
  int64_t pitch() const {
    return out_width + reach_x();
  }
  double padding() const {
    const auto tiles = static_cast<double>(ceil_div(out_height * pitch(), kTileRows) * kTileRows);
    const double pixels = tiles / static_cast<double>(out_height * out_width);
    const double inputs = static_cast<double>(whole_chunks(channels)) / static_cast<double>(channels);
    const double outputs =
        static_cast<double>(ceil_div(columns, kAmxColumns) * kAmxColumns) / static_cast<double>(columns);
    return pixels * inputs * outputs;
  }

  // The rows of what is read whose sums a row task makes: all of them are among those that it reads.
  std::pair<int64_t, int64_t> own_rows(int64_t row_task) const {
    const auto [top, bottom] = tiling.band(row_task, out_height);
    const int64_t shift = reach_y() / 2 - pad_y;
    return {
        top == 0 ? 0 : std::clamp<int64_t>(top + shift, 0, height),
        bottom == out_height ? height : std::clamp<int64_t>(bottom + shift, 0, height)};
  }

  // Bands of the rows where an image is too much for one task; else several images, in a number of groups that shares
  // out evenly, and parts of the columns where there are few tasks.
  void share() {
    const int64_t most = std::min(kTaskPixels, kAmxCachedElements / (kPlanes * whole_chunks(channels)));
    const int64_t pixels = out_height * pitch();
    const int64_t per_image = std::clamp<int64_t>(ceil_div(pixels, std::max(most, pitch())), 1, out_height);
    int64_t groups = images;
    if (per_image == 1) {
      const int64_t fewest = ceil_div(images, std::max<int64_t>(1, most / pixels));
      for (groups = 1; groups < fewest; groups *= 2) {
      }
      groups = std::min(groups, images);
    }
    const int64_t panels = ceil_div(columns, kAmxColumns);
    column_parts = std::clamp<int64_t>(kSharedTasks / (groups * per_image), 1, panels);
    while (per_image == 1 && groups * column_parts < kSharedTasks && groups < images) {
      groups = std::min(2 * groups, images);
    }
    tiling = ImageTiling(images, groups, per_image);
  }
};

Plan forward_plan(const ConvShape& s) {
  const auto& [stride, padding, dilation, groups] = s.options;
  Plan plan{
      .images = s.images,
      .height = s.height,
      .width = s.width,
      .channels = s.inputs,
      .out_height = s.out_height,
      .out_width = s.out_width,
      .columns = s.units,
      .kernel_height = s.kernel_height,
      .kernel_width = s.kernel_width,
      .dilation_y = dilation[0],
      .dilation_x = dilation[1],
      .pad_y = padding[0],
      .pad_x = padding[1]};
  plan.share();
  return plan;
}

Plan backward_plan(const ConvShape& s) {
  const auto& [stride, padding, dilation, groups] = s.options;
  Plan plan{
      .images = s.images,
      .height = s.out_height,
      .width = s.out_width,
      .channels = s.units,
      .out_height = s.height,
      .out_width = s.width,
      .columns = s.inputs,
      .kernel_height = s.kernel_height,
      .kernel_width = s.kernel_width,
      .dilation_y = dilation[0],
      .dilation_x = dilation[1],
      .pad_y = 0,
      .pad_x = 0};
  plan.pad_y = plan.reach_y() - padding[0];
  plan.pad_x = plan.reach_x() - padding[1];
  plan.share();
  return plan;
}

bool supports(const ConvShape& shape, const Plan& plan) {
  return isa() == Isa::kAmx && shape.options.stride == std::array<int64_t, 2>{1, 1} && plan.pad_y >= 0 &&
         plan.pad_x >= 0 && plan.padding() <= kMostPadding;
}

// A thread's padded copy of a task's rows.
class Copy {
 public:
  Copy(const Plan& plan, int64_t images, int64_t out_rows)
      : plan_(plan),
        rows_(out_rows + plan.reach_y()),
        channels_(whole_chunks(plan.channels)),
        image_size_(rows_ * plan.pitch() * pixel()) {
    thread_local AlignedBuffer<uint16_t> buffer;
    // The last tile's taps read after the last row.
    data_ = buffer.get(images * image_size_ + (kTileRows + plan.reach_x()) * pixel());
  }

  // Elements of a pixel: chunks of planes of 32 channels.
  int64_t pixel() const {
    return kPlanes * channels_;
  }
  const uint16_t* at(int64_t image, int64_t position) const {
    return data_ + image * image_size_ + position * pixel();
  }
  int64_t tap(int64_t i, int64_t j) const {
    return (i * plan_.dilation_y * plan_.pitch() + j * plan_.dilation_x) * pixel();
  }

  // Rows of one image; row 0 is `first` in what is read. fill(row, channel, channels, to) writes the pixels of a row.
  template <typename Fill>
  void fill_image(int64_t image, int64_t first, const Fill& fill) const {
    const int64_t pitch = plan_.pitch() * pixel();
    for (int64_t r = 0; r < rows_; ++r) {
      uint16_t* to = data_ + image * image_size_ + r * pitch;
      const int64_t row = first + r;
      const bool beside = row < 0 || row >= plan_.height;
      if (beside || channels_ != plan_.channels) {
        std::fill_n(to, pitch, 0);
      } else {
        std::fill_n(to, plan_.pad_x * pixel(), 0);
        const int64_t end = plan_.pad_x + plan_.width;
        std::fill(to + end * pixel(), to + pitch, 0);
      }
      if (beside) {
        continue;
      }
      for (int64_t channel = 0; channel < plan_.channels; channel += kAmxChannels) {
        fill(
            row, channel, std::min(kAmxChannels, plan_.channels - channel),
            to + plan_.pad_x * pixel() + channel * kPlanes);
      }
    }
  }

 private:
  const Plan& plan_;
  int64_t rows_, channels_, image_size_;
  uint16_t* data_;
};

IndirectRows& thread_rows() {
  thread_local IndirectRows rows;
  return rows;
}

// place(image, y, x, row) gives a row of the product its output and gates.
template <typename Place>
void multiply_copy(
    const Plan& plan, const Copy& copy, int64_t images, int64_t top, int64_t bottom, const PackedWeight& b,
    int64_t column_part, const Epilogue& epilogue, const Place& place) {
#ifdef MEMMOD_AMX
  const int64_t pitch = plan.pitch(), tiles_of_image = ceil_div((bottom - top) * pitch, kTileRows);
  const int64_t tiles = images * tiles_of_image, blocks = ceil_div(tiles, 2);
  IndirectRows& rows = thread_rows();
  rows.reset(blocks * kAmxRows);
  thread_local std::vector<float> unread;
  unread.resize(std::max<size_t>(unread.size(), plan.columns));
  std::fill(rows.out.begin(), rows.out.end(), unread.data());
  std::fill(rows.kept.begin(), rows.kept.end(), unread.data());
  std::fill(rows.gates.begin(), rows.gates.end(), unread.data());
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t y = top; y < bottom; ++y) {
      const int64_t row = image * tiles_of_image * kTileRows + (y - top) * pitch;
      for (int64_t x = 0; x < plan.out_width; ++x) {
        place(image, y, x, row + x, rows);
      }
    }
  }
  thread_local std::vector<int64_t> offsets;
  offsets.clear();
  for (int64_t i = 0; i < plan.kernel_height; ++i) {
    for (int64_t j = 0; j < plan.kernel_width; ++j) {
      offsets.push_back(copy.tap(i, j));
    }
  }
  thread_local AlignedBuffer<float> buffer;
  constexpr int64_t kBlock = kAmxRows * kAmxColumns;
  float* sums = buffer.get(2 * kBlock);
  DeferredEpilogue deferred(rows, b, epilogue);
  const auto tile_at = [&](int64_t tile) {
    const int64_t known = std::min(tile, tiles - 1);
    return copy.at(known / tiles_of_image, known % tiles_of_image * kTileRows);
  };
  int64_t turn = 0;
  const auto multiply_block = [&](int64_t block, int64_t panel) {
    float* c = sums + turn++ % 2 * kBlock;
    multiply_amx(
        kPlanes, {.a = {tile_at(2 * block), tile_at(2 * block + 1)},
                  .a_stride = copy.pixel(),
                  .a_plane = kAmxChannels,
                  .a_step = kPlanes * kAmxChannels,
                  .offsets = offsets.data(),
                  .taps = static_cast<int64_t>(offsets.size()),
                  .chunks = ceil_div(plan.channels, kAmxChannels),
                  .b = b.bf16_panel(panel),
                  .c = c,
                  .add = false,
                  .pending = deferred.pending()});
    deferred.add(c, block, panel);
  };
  const int64_t first = part_start(b.panels(), plan.column_parts, column_part);
  const int64_t last = part_start(b.panels(), plan.column_parts, column_part + 1);
  start_amx();
  if ((last - first) * (b.storage.numel() / b.panels()) <= kAmxCachedElements) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t panel = first; panel < last; ++panel) {
        multiply_block(block, panel);
      }
    }
  } else {
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t block = 0; block < blocks; ++block) {
        multiply_block(block, panel);
      }
    }
  }
  stop_amx();
  deferred.finish();
#endif
}

}  // namespace

bool amx_supports(const ConvShape& shape) {
  return !shape.depthwise() && supports(shape, forward_plan(shape));
}

bool amx_supports_backward(const ConvShape& shape) {
  return !shape.depthwise() && supports(shape, backward_plan(shape));
}

std::vector<std::pair<int64_t, int64_t>> amx_backward_samples(const ConvShape& shape, int64_t images_per_sample) {
  return backward_plan(shape).tiling.samples(images_per_sample);
}

void implicit_gemm_amx(const ConvForward& layer, const ConvShape& shape, const PackedWeight& weight) {
  const Plan plan = forward_plan(shape);
  const Epilogue epilogue = epilogue_of(layer);
  for_each_task(plan.tiling.tasks() * plan.column_parts, true, [&](int64_t task) {
    const int64_t row_task = task / plan.column_parts, first_image = plan.tiling.first_image(row_task);
    const int64_t images = plan.tiling.last_image(row_task) - first_image;
    const auto [top, bottom] = plan.tiling.band(row_task, plan.out_height);
    const Copy copy(plan, images, bottom - top);
    for (int64_t image = 0; image < images; ++image) {
      const float* x = layer.x + (first_image + image) * shape.height * shape.width * shape.inputs;
      const float* s = layer.in == nullptr ? nullptr : layer.in->row((first_image + image) / layer.images_per_sample);
      copy.fill_image(image, top - plan.pad_y, [&](int64_t row, int64_t channel, int64_t channels, uint16_t* to) {
        micro_kernels().split_bf16x3(
            x + row * shape.width * shape.inputs + channel, shape.inputs, s == nullptr ? nullptr : s + channel, to,
            copy.pixel(), kAmxChannels, shape.width, channels);
      });
    }
    multiply_copy(
        plan, copy, images, top, bottom, weight, task % plan.column_parts, epilogue,
        [&](int64_t image, int64_t y, int64_t x, int64_t row, IndirectRows& rows) {
          const int64_t n = first_image + image;
          const int64_t at = ((n * shape.out_height + y) * shape.out_width + x) * shape.units;
          rows.out[row] = layer.y + at;
          rows.kept[row] = layer.kept == nullptr ? nullptr : layer.kept + at;
          rows.gates[row] = layer.gates == nullptr ? nullptr : layer.gates->row_or_ones(n / layer.images_per_sample);
        });
  });
}

void implicit_gemm_amx_backward(const ConvBackward& layer, const ConvShape& shape, const PackedWeight& weight) {
  const Plan plan = backward_plan(shape);
  const MicroKernels& kernel = micro_kernels();
  const auto reduce = layer.relu ? kernel.reduce_split_relu_bf16x3 : kernel.reduce_split_bf16x3;
  for_each_task(plan.tiling.tasks() * plan.column_parts, true, [&](int64_t task) {
    const int64_t row_task = task / plan.column_parts, first_image = plan.tiling.first_image(row_task);
    const int64_t images = plan.tiling.last_image(row_task) - first_image;
    const auto [top, bottom] = plan.tiling.band(row_task, plan.out_height);
    const auto [own_top, own_bottom] = plan.own_rows(row_task);
    const bool counts = layer.sums != nullptr && task % plan.column_parts == 0;
    const Copy copy(plan, images, bottom - top);
    for (int64_t image = 0; image < images; ++image) {
      const int64_t n = first_image + image, sample = n / layer.images_per_sample;
      const float* s = layer.gates == nullptr ? nullptr
                       : layer.relu           ? layer.gates->row_or_ones(sample)
                                              : layer.gates->row(sample);
      float* sums = counts ? layer.sums->row(row_task, sample) : nullptr;
      const auto element = [&](int64_t row, int64_t channel) {
        return (n * plan.height + row) * plan.width * plan.channels + channel;
      };
      const auto fill = [&](int64_t row, int64_t channel, int64_t channels, uint16_t* to) {
        const bool own = row >= own_top && row < own_bottom;
        float* sum = sums != nullptr && own ? sums : layer.relu ? unread_sums(plan.channels) : nullptr;
        const float* dy = layer.dy + element(row, channel);
        if (sum != nullptr) {
          // A row's products are added up first: shorter chains of sums round less.
          float of_row[kAmxChannels] = {};
          in_runs(of_row, plan.width, channels, [&](int64_t first, int64_t run, float* into) {
            reduce(
                dy + first * plan.channels, layer.saved + element(row, channel) + first * plan.channels, plan.channels,
                s + channel, to + first * copy.pixel(), copy.pixel(), kAmxChannels, into, run, channels);
          });
          for (int64_t i = 0; i < channels; ++i) {
            sum[channel + i] += of_row[i];
          }
        } else {
          kernel.split_bf16x3(
              dy, plan.channels, s == nullptr ? nullptr : s + channel, to, copy.pixel(), kAmxChannels, plan.width,
              channels);
        }
      };
      copy.fill_image(image, top - plan.pad_y, fill);
    }
    multiply_copy(
        plan, copy, images, top, bottom, weight, task % plan.column_parts, Epilogue{},
        [&](int64_t image, int64_t y, int64_t x, int64_t row, IndirectRows& rows) {
          rows.out[row] =
              layer.dx + (((first_image + image) * plan.out_height + y) * plan.out_width + x) * plan.columns;
        });
  });
}

}  // namespace memmod::cpu
