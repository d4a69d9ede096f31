#include "gemm/indirect_gemm.h"

#include <algorithm>
#include <vector>

#include "base/partition.h"
#include "base/prefetch.h"
#include "micro/microkernels.h"

namespace memmod::cpu {
namespace {

// Taps that follow each other in A as in B, in equal runs: a run is summed as one tap of its channels.
int64_t run_of(c10::ArrayRef<Tap> taps, int64_t channels) {
  const auto follows = [&](size_t i) {
    return taps[i].a == taps[i - 1].a + channels && taps[i].b == taps[i - 1].b + 1;
  };
  size_t run = 1;
  while (run < taps.size() && follows(run)) {
    ++run;
  }
  for (size_t i = run; i < taps.size(); ++i) {
    if (follows(i) != (i % run != 0)) {
      return 1;
    }
  }
  return taps.size() % run == 0 ? static_cast<int64_t>(run) : 1;
}

// Has a micro-kernel read and write the rows from `row` on.
void take_rows(MicroTile& t, const IndirectRows& rows, int64_t row, const Epilogue& epilogue) {
  t.a = rows.a.data() + row;
  t.out = rows.out.data() + row;
  t.kept = epilogue.kept ? rows.kept.data() + row : nullptr;
  t.gates = epilogue.gated ? rows.gates.data() + row : nullptr;
}

// What one call of a micro-kernel sums up: taps of a pass from `tap` on, and in each of them channels from `channel`
// on.
struct KBlock {
  int64_t tap, taps, channel, channels;
};

// `taps` taps of `channels` channels in k-blocks of nearly the same length, of whole vectors or whole taps.
void split_into_k_blocks(int64_t taps, int64_t channels, std::vector<KBlock>& k_blocks) {
  k_blocks.clear();
  if (channels <= kKBlock) {
    const int64_t parts = ceil_div(taps * channels, std::max<int64_t>(1, kKBlock / channels * channels));
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part_start(taps, parts, part);
      k_blocks.push_back({first, part_start(taps, parts, part + 1) - first, 0, channels});
    }
    return;
  }
  const int64_t parts = ceil_div(channels, kKBlock), lanes = micro_kernels().lanes;
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part_start(channels, parts, part, lanes);
      k_blocks.push_back({tap, 1, first, part_start(channels, parts, part + 1, lanes) - first});
    }
  }
}

}  // namespace

void indirect_gemm(
    IndirectRows& rows, const PackedWeight& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue, const PackA* pack_a) {
  const MicroKernels& kernel = micro_kernels();
  const auto& tiles = kernel.gemm[static_cast<int>(epilogue.type)];
  const int64_t kc = channels_per_pass(b.channels);
  // Of a pass.
  const int64_t most_taps = std::max<int64_t>(1, kernel.kc / std::max<int64_t>(1, kc));
  int64_t run = kc == b.channels ? run_of(taps, b.channels) : 1;
  run = run > most_taps ? 1 : run;
  const int64_t runs = static_cast<int64_t>(taps.size()) / run, group = std::min(runs, most_taps / run);
  const int64_t passes = ceil_div(b.channels, kc) * ceil_div(runs, group);
  // Sums between passes for all tiles, between k-blocks for one.
  thread_local std::vector<float> sums;
  const int64_t kept_rows = passes > 1 ? rows.count() * (last_panel - first_panel) : kernel.mr;
  if (static_cast<int64_t>(sums.size()) < kept_rows * b.width) {
    sums.resize(kept_rows * b.width);
  }
  thread_local std::vector<int64_t> a_offsets, b_offsets;
  a_offsets.resize(runs);
  b_offsets.resize(runs);
  for (int64_t i = 0; i < runs; ++i) {
    a_offsets[i] = taps[i * run].a;
    b_offsets[i] = taps[i * run].b * b.channels * b.width;
  }
  int64_t pass = 0;
  MicroTile t = micro_tile(epilogue);
  t.partial_stride = b.width;
  thread_local std::vector<KBlock> k_blocks;
  Prefetcher prefetcher(rows.to_prefetch(), passes * (last_panel - first_panel) * rows.tiles());
  for (int64_t channel = 0; channel < b.channels; channel += kc) {
    const int64_t channels = std::min(kc, b.channels - channel);
    t.a_step = pack_a == nullptr ? kernel.lanes : kernel.mr * kernel.lanes;
    if (pack_a != nullptr) {
      (*pack_a)(channel, channels);
    }
    for (int64_t first = 0; first < runs; first += group, ++pass) {
      split_into_k_blocks(std::min(group, runs - first), channels * run, k_blocks);
      const auto sum_up = [&](const KBlock& k_block, int64_t panel) {
        t.taps = k_block.taps;
        t.a_offsets = a_offsets.data() + first + k_block.tap;
        t.b_offsets = b_offsets.data() + first + k_block.tap;
        t.channels = k_block.channels;
        t.a_channel = (pack_a == nullptr ? channel : 0) + k_block.channel / kernel.lanes * t.a_step;
        t.b = b.panel(panel) + (channel + k_block.channel) * b.width;
      };
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        t.column = panel * b.width;
        t.columns = std::min(b.width, b.columns - t.column);
        sum_up(k_blocks.front(), panel);
        for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
          const int64_t row = rows.tile_start(tile), count = rows.tile_start(tile + 1) - row;
          take_rows(t, rows, row, epilogue);
          float* partial = sums.data() + (passes > 1 ? (panel - first_panel) * rows.count() + row : 0) * b.width;
          for (size_t i = 0; i < k_blocks.size(); ++i) {
            if (k_blocks.size() > 1) {
              sum_up(k_blocks[i], panel);
            }
            t.partial_in = pass == 0 && i == 0 ? nullptr : partial;
            t.partial_out = pass == passes - 1 && i == k_blocks.size() - 1 ? nullptr : partial;
            tiles[count - 1](t);
          }
          prefetcher.step();
        }
      }
    }
  }
}

void indirect_depthwise(
    IndirectRows& rows, const PackedWeight& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue) {
  thread_local std::vector<int64_t> a_offsets, b_offsets;
  a_offsets.clear();
  b_offsets.clear();
  for (const Tap& tap : taps) {
    a_offsets.push_back(tap.a);
    b_offsets.push_back(tap.b * b.width);
  }
  MicroTile t = micro_tile(epilogue);
  t.taps = static_cast<int64_t>(taps.size());
  t.a_offsets = a_offsets.data();
  t.b_offsets = b_offsets.data();
  for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
    const int64_t row = rows.tile_start(tile), count = rows.tile_start(tile + 1) - row;
    take_rows(t, rows, row, epilogue);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      t.b = b.panel(panel);
      t.column = panel * b.width;
      t.columns = std::min(b.width, b.columns - t.column);
      micro_kernels().depthwise[count - 1](t);
    }
  }
}

}  // namespace memmod::cpu
