#include "gemm/indirect_rows.h"

#include <algorithm>

#include "base/partition.h"
#include "micro/microkernels.h"

namespace memmod::cpu {

void IndirectRows::reset(int64_t count) {
  to_prefetch_.clear();
  count_ = count;
  tiles_ = ceil_div(count, micro_kernels().mr);
  starts_.resize(tiles_ + 1);
  for (int64_t tile = 0; tile <= tiles_; ++tile) {
    starts_[tile] = part_start(count, tiles_, tile);
  }
  a.resize(count);
  out.resize(count);
  kept.resize(count);
  gates.resize(count);
}

PackedRows::PackedRows(IndirectRows& rows, int64_t channels) : rows_(rows) {
  const MicroKernels& kernel = micro_kernels();
  thread_local std::vector<float> buffer;
  tile_size_ = ceil_div(channels_per_pass(channels), kernel.lanes) * step();
  if (static_cast<int64_t>(buffer.size()) < rows.tiles() * tile_size_) {
    buffer.resize(rows.tiles() * tile_size_);
  }
  buffer_ = buffer.data();
  for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
    for (int64_t row = rows.tile_start(tile); row < rows.tile_start(tile + 1); ++row) {
      rows.a[row] = buffer_ + tile * tile_size_ + (row - rows.tile_start(tile)) * row_stride();
    }
  }
}

int64_t PackedRows::step() const {
  return micro_kernels().mr * micro_kernels().lanes;
}

int64_t PackedRows::row_stride() const {
  return micro_kernels().lanes;
}

int64_t PackedRows::first_tile(int64_t row) const {
  int64_t tile = row / micro_kernels().mr;
  while (rows_.tile_start(tile + 1) <= row) {
    ++tile;
  }
  return tile;
}

int64_t channels_per_pass(int64_t channels) {
  return ceil_div(channels, std::max<int64_t>(1, ceil_div(channels, micro_kernels().kc)));
}

}  // namespace memmod::cpu
