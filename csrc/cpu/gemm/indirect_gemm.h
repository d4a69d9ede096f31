// C = A · B in tiles, for the rows of one task: the loop that linear layers and convolutions share.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>

#include "gemm/epilogue.h"
#include "gemm/indirect_rows.h"
#include "layers/weight_cache.h"
#include "micro/microkernels.h"

namespace memmod::cpu {

// Channels times taps that are summed one after the other, at most, before the sum joins the rest: long chains round
// more. 64 channels of 3 × 3 taps are one chain. Largest error of 1,024 inputs in 256² sums: 5.6e-6 in one chain,
// 3.7e-6 in two, 2.2e-6 in four (library 1.6e-6). Time of layers with 768 and 1,024 inputs on AVX2: 1.02 to 1.04 of one
// chain's; of ResNet-18's convolutions 1.00 to 1.01.
constexpr int64_t kChain = 576;

// Where the channels of a tap are: elements from a row's pointer into A, and its index in B.
struct Tap {
  int64_t a, b;
};

// rows.out = epilogue(A · B) for panels [first_panel, last_panel) of B, summed over the given taps of B. With
// `prepare`, A's rows are a RowCopy; else they hold all channels.
void multiply(
    Rows& rows, const Packed& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue, const Prepare* prepare = nullptr);

// The same for a depthwise convolution in fp32: A's rows have B's columns, B (kTiles, kForward) has one channel. The
// columns are a multiple of a vector, and all taps one chain.
void multiply_depthwise(
    Rows& rows, const Packed& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue);

}  // namespace memmod::cpu
