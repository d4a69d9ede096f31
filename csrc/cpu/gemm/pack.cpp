#include "gemm/pack.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "base/parallel.h"
#include "base/partition.h"
#include "micro/amx.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Elements below which a thread costs more than it saves.
constexpr int64_t kSerialElements = 1 << 15;

template <typename T>
void pack_panel(const at::Tensor& weight, Direction direction, const PackedWeight& packed, int64_t panel, float* out) {
  const bool forward = direction == Direction::kForward;
  const T* data = weight.const_data_ptr<T>();
  const int64_t column_stride = weight.stride(forward ? 0 : 1), channel_stride = weight.stride(forward ? 1 : 0);
  const int64_t kernel_width = weight.dim() == 4 ? weight.size(3) : 1;
  const int64_t first = panel * packed.width;
  const int64_t count = std::min(packed.width, packed.columns - first);
  for (int64_t tap = 0; tap < packed.taps; ++tap) {
    const T* from = data + first * column_stride;
    if (weight.dim() == 4) {
      from += tap / kernel_width * weight.stride(2) + tap % kernel_width * weight.stride(3);
    }
    float* to = out + (forward ? tap : packed.taps - 1 - tap) * packed.channels * packed.width;
    for (int64_t channel = 0; channel < packed.channels; ++channel, to += packed.width, from += channel_stride) {
      for (int64_t i = 0; i < count; ++i) {
        to[i] = static_cast<float>(from[i * column_stride]);
      }
      std::fill_n(to + count, packed.width - count, 0.0f);
    }
  }
}

// Columns of a panel in pairs, at most; panels get equal shares in steps of 32. The library's product on one core (of a
// processor with AMX), GF/s with 32, 64 and 128 columns: 768 → 3,072 features 1,550, 1,540 and 1,640; 3,072 → 768
// features 1,380, 710 and 1,100.
int64_t pair_width(int64_t channels, int64_t columns) {
  constexpr int64_t kManyChannels = 1024, kStep = 32;
  const int64_t most = channels > kManyChannels ? kStep : 4 * kStep;
  return ceil_div(ceil_div(columns, ceil_div(columns, most)), kStep) * kStep;
}

// The elements of a weight as B's channels by columns, for one tap.
template <typename T>
struct Source {
  Source(const at::Tensor& weight, Direction direction)
      : forward(direction == Direction::kForward),
        data(weight.const_data_ptr<T>()),
        column_stride(weight.stride(forward ? 0 : 1)),
        channel_stride(weight.stride(forward ? 1 : 0)),
        kernel_width(weight.dim() == 4 ? weight.size(3) : 1),
        tap_strides{weight.dim() == 4 ? weight.stride(2) : 0, weight.dim() == 4 ? weight.stride(3) : 0} {
  }
  // tap: in the order in which it is packed.
  const T* at(int64_t tap, int64_t taps, int64_t channel, int64_t column) const {
    const int64_t own = forward ? tap : taps - 1 - tap;
    return data + own / kernel_width * tap_strides[0] + own % kernel_width * tap_strides[1] + channel * channel_stride +
           column * column_stride;
  }

  bool forward;
  const T* data;
  int64_t column_stride, channel_stride, kernel_width;
  std::array<int64_t, 2> tap_strides;
};

void pack_pairs(const at::Tensor& weight, Direction direction, PackedWeight& packed) {
  const Source<at::BFloat16> source(weight, direction);
  const int64_t pairs = (packed.channels + 1) / 2;
  packed.storage = at::zeros({packed.panels() * pairs * packed.width * 2}, at::kBFloat16);
  at::BFloat16* out = packed.storage.mutable_data_ptr<at::BFloat16>();
  for_each_task(packed.panels(), packed.storage.numel() > kSerialElements, [&](int64_t panel) {
    const int64_t first = panel * packed.width, count = std::min(packed.width, packed.columns - first);
    at::BFloat16* to = out + panel * pairs * packed.width * 2;
    for (int64_t channel = 0; channel < packed.channels; ++channel) {
      const at::BFloat16* from = source.at(0, 1, channel, first);
      for (int64_t i = 0; i < count; ++i) {
        to[(channel / 2 * packed.width + i) * 2 + channel % 2] = from[i * source.column_stride];
      }
    }
  });
}

// A block of one chunk of channels and one panel of columns, as planes of tiles.
void write_tiles(const at::BFloat16* block, uint16_t* out, int64_t planes) {
  constexpr int64_t kHalf = kAmxColumns / 2, kPairs = kAmxChannels / 2, kSize = kAmxChannels * kAmxColumns;
  for (int64_t tile = 0; tile < 2 * planes; ++tile) {
    const at::BFloat16* from = block + tile / 2 * kSize + tile % 2 * kHalf;
    for (int64_t pair = 0; pair < kPairs; ++pair) {
      for (int64_t i = 0; i < kHalf; ++i) {
        *out++ = from[2 * pair * kAmxColumns + i].x;
        *out++ = from[(2 * pair + 1) * kAmxColumns + i].x;
      }
    }
  }
}

// Layers that train are packed in every step. 768 → 3,072 features, fp32, one core: 0.4 of the layer's forward.
template <typename T>
void pack_tiles(const at::Tensor& weight, Direction direction, PackedWeight& packed) {
  constexpr bool kSplit = std::is_same_v<T, float>;
  constexpr int64_t kSize = kAmxChannels * kAmxColumns;
  const Source<T> source(weight, direction);
  const int64_t planes = planes_of(packed.layout), chunks = ceil_div(packed.channels, kAmxChannels);
  const int64_t panel_size = packed.taps * chunks * planes * kSize;
  packed.storage = at::empty({packed.panels() * panel_size}, at::kBFloat16);
  auto* out = static_cast<uint16_t*>(packed.storage.mutable_data_ptr());
  for_each_task(packed.panels(), packed.storage.numel() > kSerialElements, [&](int64_t panel) {
    const int64_t first = panel * kAmxColumns, count = std::min(kAmxColumns, packed.columns - first);
    uint16_t* to = out + panel * panel_size;
    for (int64_t tap = 0; tap < packed.taps; ++tap) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk, to += planes * kSize) {
        T block[kSize] = {};
        const int64_t channel = chunk * kAmxChannels, last = std::min(packed.channels, channel + kAmxChannels);
        const T* from = source.at(tap, packed.taps, channel, first);
        for (int64_t k = 0; k < last - channel; ++k) {
          for (int64_t i = 0; i < count; ++i) {
            block[k * kAmxColumns + i] = from[k * source.channel_stride + i * source.column_stride];
          }
        }
        if constexpr (kSplit) {
          at::BFloat16 split[3 * kSize];
          micro_kernels().split_bf16x3(
              block, kAmxColumns, nullptr, reinterpret_cast<uint16_t*>(split), kAmxColumns, kSize, kAmxChannels,
              kAmxColumns);
          write_tiles(split, to, planes);
        } else {
          write_tiles(block, to, planes);
        }
      }
    }
  });
}

}  // namespace

PackedWeight pack(const at::Tensor& weight, Direction direction, WeightLayout layout) {
  const bool forward = direction == Direction::kForward;
  PackedWeight packed;
  packed.taps = weight.dim() == 4 ? weight.size(2) * weight.size(3) : 1;
  packed.channels = weight.size(forward ? 1 : 0);
  packed.columns = weight.size(forward ? 0 : 1);
  packed.layout = layout;
  if (layout != WeightLayout::kPanels) {
    packed.width = layout == WeightLayout::kPairs ? pair_width(packed.channels, packed.columns) : kAmxColumns;
    layout == WeightLayout::kPairs       ? pack_pairs(weight, direction, packed)
    : layout == WeightLayout::kAmxBf16x3 ? pack_tiles<float>(weight, direction, packed)
                                         : pack_tiles<at::BFloat16>(weight, direction, packed);
    return packed;
  }
  packed.width = micro_kernels().nr;
  packed.storage = at::empty({packed.panels() * packed.taps * packed.channels * packed.width}, at::kFloat);
  float* out = packed.storage.mutable_data_ptr<float>();
  const int64_t size = packed.taps * packed.channels * packed.width;
  for_each_task(packed.panels(), packed.storage.numel() > kSerialElements, [&](int64_t panel) {
    switch (weight.scalar_type()) {
      case at::kFloat:
        return pack_panel<float>(weight, direction, packed, panel, out + panel * size);
      case at::kBFloat16:
        return pack_panel<at::BFloat16>(weight, direction, packed, panel, out + panel * size);
      default:
        return pack_panel<at::Half>(weight, direction, packed, panel, out + panel * size);
    }
  });
  return packed;
}

}  // namespace memmod::cpu
