#include "gemm/bf16_gemm.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/matrix_view.h"
#include "base/runs.h"
#include "gemm/epilogue.h"
#include "gemm/indirect_rows.h"
#include "micro/amx.h"
#include "micro/cpu_features.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Rows of one call of the library: their sums fit in the first-level cache.
constexpr int64_t kLibraryRows = 64;
// Rows of a task, which share one reading of B, at most. One core with AMX, 768 → 3,072 features, GF/s with 64, 128 and
// 256 rows: bf16 1,090, 1,270 and 1,370, fp32 330, 385 and 400.
constexpr int64_t kTaskRows = 256;
// Rows of x that are copied side by side, along their channels: memory is read in as many streams.
constexpr int64_t kRowsTogether = 8;
// Channels of a pass. 3,072 → 768 features in fp32, all channels in one pass: 260 GF/s, see above for 768.
constexpr int64_t kPassChannels = 4096;
constexpr int64_t kSplitPassChannels = 1024;
// Elements of B that all rows of a task are multiplied with before the next ones' turn: 512 KiB, which stay in the
// second-level cache beside the rows. Of the panels among them each block of rows is multiplied with all, so that rows
// of the output are written in long pieces. One core, bf16, 1,576 rows, GF/s: 384 → 1,536 features forward 1,320, panel
// by panel 1,120, and 1,536 → 384 backward 1,110 and 1,030; 768 → 768 and 768 → 3,072 forward the same with either.
constexpr int64_t kGroupElements = 1 << 18;
// Columns from which splitting fp32 saves more time than it takes. Backwards rows are copied in any case. 1×1
// convolutions of 25,088 rows, AMX by tiles, of two runs: forward 256 → 64 features 1.1, 192 → 32 1.2; backward
// 64 → 256 0.86, 64 → 64 0.89, 32 → 128 0.82.
constexpr int64_t kFewestColumns[] = {65, 32};

// The least whole number of chunks that gives `channels` as few shares of at most `most` as possible.
int64_t equal_shares(int64_t channels, int64_t most) {
  const int64_t shares = std::max<int64_t>(1, ceil_div(channels, most));
  return std::max<int64_t>(1, ceil_div(ceil_div(channels, shares), kAmxChannels)) * kAmxChannels;
}

// Whether the library's block product works here: it raises where torch was built without it, or where a variable of
// the environment keeps it from the processor's instructions.
bool library_multiplies_pairs() {
  const std::vector<at::BFloat16> a(2, 1.0f), b(2, 1.0f);
  float c = 0.0f;
  try {
    at::native::cpublas::brgemm(1, 1, 2, 2, 1, 1, false, a.data(), b.data(), &c, true);
    at::native::cpublas::brgemm_release(true);
  } catch (const c10::Error&) {
    return false;
  }
  return c == 2.0f;
}

}  // namespace

WeightLayout weight_layout(at::ScalarType type, int64_t columns, Direction direction) {
  if (isa() == Isa::kAmx) {
    const bool splits = type == at::kFloat && columns >= kFewestColumns[static_cast<int>(direction)];
    return type == at::kBFloat16 ? WeightLayout::kAmx : splits ? WeightLayout::kAmxBf16x3 : WeightLayout::kPanels;
  }
  if (type != at::kBFloat16 || isa() != Isa::kAvx512Bf16 || !at::globalContext().userEnabledMkldnn()) {
    return WeightLayout::kPanels;
  }
  static const bool works = library_multiplies_pairs();
  return works ? WeightLayout::kPairs : WeightLayout::kPanels;
}

Grain grain_of(WeightLayout layout, int64_t channels) {
  if (layout == WeightLayout::kPanels) {
    return micro_kernel_grain(micro_kernels().mr);
  }
  const int64_t elements = planes_of(layout) * bf16_channels_per_pass(layout, channels);
  const int64_t fit = kAmxCachedElements / std::max<int64_t>(1, elements) / kAmxRows * kAmxRows;
  return {std::clamp(fit, 2 * kAmxRows, kTaskRows), kAmxRows, kAmxRows};
}

int64_t bf16_channels_per_pass(WeightLayout layout, int64_t channels) {
  if (layout == WeightLayout::kPairs) {
    return channels;
  }
  return equal_shares(channels, layout == WeightLayout::kAmx ? kPassChannels : kSplitPassChannels);
}

Bf16Rows::Bf16Rows(const PackedWeight& b, int64_t count) : planes_(planes_of(b.layout)), count_(count) {
  const int64_t channels = bf16_channels_per_pass(b.layout, b.channels);
  if (b.layout == WeightLayout::kPairs) {
    block_rows_ = kLibraryRows;
    chunk_ = channels;
    row_stride_ = plane_stride_ = chunk_stride_ = channels + channels % 2;
    block_stride_ = block_rows_ * row_stride_;
  } else {
    block_rows_ = kAmxRows;
    chunk_ = row_stride_ = kAmxChannels;
    plane_stride_ = kAmxRows * kAmxChannels;
    chunk_stride_ = planes_ * plane_stride_;
    block_stride_ = channels / kAmxChannels * chunk_stride_;
  }
  thread_local AlignedBuffer<uint16_t> buffer;
  data_ = buffer.get(ceil_div(count, block_rows_) * block_stride_);
}

template <typename Fn>
void Bf16Rows::each_part(int64_t first, int64_t rows, const Fn& fn) const {
  for (const int64_t last = first + rows; first < last;) {
    const int64_t block = first / block_rows_;
    const int64_t count = std::min({last, (block + 1) * block_rows_, first + kRowsTogether}) - first;
    uint16_t* to = data_ + block * block_stride_ + (first - block * block_rows_) * row_stride_;
    for (int64_t channel = 0; channel < channels_; channel += chunk_, to += chunk_stride_) {
      fn(first, count, channel, std::min(chunk_, channels_ - channel), to);
    }
    first += count;
  }
}

bool Bf16Rows::can_read(const PackedWeight& b) {
  return b.layout == WeightLayout::kAmx && b.channels % kAmxChannels == 0;
}

Bf16Rows::Bf16Rows(const void* x, int64_t count, int64_t channels)
    : planes_(1),
      count_(count),
      block_rows_(kAmxRows),
      chunk_(kAmxChannels),
      row_stride_(channels),
      plane_stride_(0),
      chunk_stride_(kAmxChannels),
      block_stride_(kAmxRows * channels),
      data_(static_cast<uint16_t*>(const_cast<void*>(x))),
      copies_(false) {
  const int64_t whole = count / kAmxRows, rest = count % kAmxRows;
  if (rest > 0) {
    thread_local AlignedBuffer<uint16_t> buffer;
    last_ = buffer.get(block_stride_);
    std::copy_n(data_ + whole * block_stride_, rest * channels, last_);
    std::fill(last_ + rest * channels, last_ + block_stride_, 0);
  }
}

const uint16_t* Bf16Rows::block(int64_t number) const {
  const bool copied = last_ != nullptr && number == count_ / kAmxRows;
  return copied ? last_ + (first_ - data_) : first_ + number * block_stride_;
}

void Bf16Rows::start(int64_t channel, int64_t channels) {
  if (!copies_) {
    first_ = data_ + channel;
    return;
  }
  first_ = data_;
  channels_ = channels;
  const int64_t chunk = ceil_div(channels, chunk_) - 1, held = channels - chunk * chunk_;
  if (held == row_stride_) {
    return;
  }
  // Behind the last channel, in every plane of every row.
  for (int64_t row = 0; row < count_; ++row) {
    uint16_t* to = data_ + row / block_rows_ * block_stride_ + row % block_rows_ * row_stride_ + chunk * chunk_stride_;
    for (int64_t plane = 0; plane < planes_; ++plane) {
      std::fill(to + plane * plane_stride_ + held, to + plane * plane_stride_ + row_stride_, 0);
    }
  }
}

void Bf16Rows::scale(Type type, const void* x, int64_t stride, const float* s, int64_t to, int64_t rows) const {
  const MicroKernels& kernel = micro_kernels();
  each_part(to, rows, [&](int64_t row, int64_t count, int64_t channel, int64_t channels, uint16_t* y) {
    const void* from = shifted(x, type, (row - to) * stride + channel);
    const float* gates = s == nullptr ? nullptr : s + channel;
    if (planes_ == 1) {
      kernel.scale_rows[static_cast<int>(type)](from, stride, gates, y, row_stride_, count, channels);
    } else {
      kernel.split_bf16x3(
          static_cast<const float*>(from), stride, gates, y, row_stride_, plane_stride_, count, channels);
    }
  });
}

void Bf16Rows::scale_and_reduce(
    Type type, bool relu, const void* x, const void* other, int64_t stride, const float* s, float* sums, int64_t to,
    int64_t rows) const {
  const MicroKernels& kernel = micro_kernels();
  const auto reduce = (relu ? kernel.reduce_relu_rows : kernel.reduce_rows)[static_cast<int>(type)];
  const auto split = relu ? kernel.reduce_split_relu_bf16x3 : kernel.reduce_split_bf16x3;
  in_runs(sums, rows, channels_, [&](int64_t start, int64_t run, float* into) {
    each_part(to + start, run, [&](int64_t row, int64_t count, int64_t channel, int64_t channels, uint16_t* y) {
      const int64_t at = (row - to) * stride + channel;
      const void *a = shifted(x, type, at), *b = shifted(other, type, at);
      if (planes_ == 1) {
        reduce(a, b, stride, s + channel, y, row_stride_, into + channel, count, channels);
      } else {
        split(
            static_cast<const float*>(a), static_cast<const float*>(b), stride, s + channel, y, row_stride_,
            plane_stride_, into + channel, count, channels);
      }
    });
  });
}

void bf16_gemm(
    IndirectRows& rows, const PackedWeight& b, Bf16Rows& a, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue, const PackA& pack_a) {
  thread_local AlignedBuffer<float> buffer;
  const int64_t kc = bf16_channels_per_pass(b.layout, b.channels), blocks = ceil_div(rows.count(), a.block_rows_);
  if (b.layout == WeightLayout::kPairs) {
    a.start(0, b.channels);
    pack_a(0, b.channels);
    ApplyEpilogue finish(rows, epilogue);
    float* sums = buffer.get(kLibraryRows * b.width);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panel * b.width, columns = std::min(b.width, b.columns - column);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kLibraryRows, count = std::min(kLibraryRows, rows.count() - first);
        at::native::cpublas::brgemm(
            count, columns, a.row_stride_, a.row_stride_, b.width, b.width, false,
            reinterpret_cast<const at::BFloat16*>(a.first_ + block * a.block_stride_),
            reinterpret_cast<const at::BFloat16*>(b.bf16_panel(panel)), sums, true);
        finish(sums, b.width, first, count, column, columns);
      }
    }
    // The library may leave the processor's tiles set up for its last call.
    at::native::cpublas::brgemm_release(true);
    return;
  }
#ifdef MEMMOD_AMX
  constexpr int64_t kNoOffset = 0, kBlock = kAmxRows * kAmxColumns;
  const int64_t panels = last_panel - first_panel, passes = ceil_div(b.channels, kc);
  const int64_t group = std::clamp<int64_t>(kGroupElements / (kc * a.planes_ * kAmxColumns), 1, panels);
  DeferredEpilogue deferred(rows, b, epilogue);
  // Between passes the sums of all blocks; else of one and of the one before it, which waits.
  const int64_t slots = passes > 1 ? panels * blocks : 2;
  float* sums = buffer.get(slots * kBlock);
  int64_t pass = 0, turn = 0;
  const auto multiply_block = [&](int64_t block, int64_t panel) {
    const uint16_t* first_row = a.block(block);
    const int64_t slot = passes > 1 ? block * panels + panel - first_panel : turn++ % slots;
    float* c = sums + slot * kBlock;
    multiply_amx(
        a.planes_, {.a = {first_row, first_row + kAmxRows / 2 * a.row_stride_},
                    .a_stride = a.row_stride_,
                    .a_plane = a.plane_stride_,
                    .a_step = a.chunk_stride_,
                    .offsets = &kNoOffset,
                    .taps = 1,
                    .chunks = ceil_div(std::min(kc, b.channels - pass * kc), kAmxChannels),
                    .b = b.bf16_panel(panel) + pass * kc * a.planes_ * kAmxColumns,
                    .c = c,
                    .add = pass > 0,
                    .pending = deferred.pending()});
    if (pass == passes - 1) {
      deferred.add(c, block, panel);
    }
  };
  for (; pass < passes; ++pass) {
    const int64_t channel = pass * kc, channels = std::min(kc, b.channels - channel);
    a.start(channel, channels);
    // All of a task's rows: with each block's on the way of the products of the block before, bf16 backwards take 1.0
    // to 1.15 of the time, whatever the size of the parts.
    pack_a(channel, channels);
    start_amx();
    for (int64_t first = first_panel; first < last_panel; first += group) {
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t panel = first; panel < std::min(last_panel, first + group); ++panel) {
          multiply_block(block, panel);
        }
      }
    }
    stop_amx();
  }
  deferred.finish();
#endif
}

}  // namespace memmod::cpu
