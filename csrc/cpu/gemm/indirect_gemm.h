// C = A · B by micro-kernels, for the rows of one task: the loop that linear layers and convolutions share.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>

#include "gemm/epilogue.h"
#include "gemm/indirect_rows.h"
#include "gemm/pack.h"

namespace memmod::cpu {

// A k-block: channels times taps that are summed one after the other, at most, before the sum joins the rest, as long
// chains of sums round more. 64 channels of 3 × 3 taps are one k-block. Largest error of 1,024 inputs in 256²
// sums: 5.6e-6 in one block, 3.7e-6 in two, 2.2e-6 in four (library 1.6e-6). Time of layers with 768 and 1,024 inputs
// on AVX2: 1.02 to 1.04 of one block's; of ResNet-18's convolutions 1.00 to 1.01.
constexpr int64_t kKBlock = 576;

// Where the channels of a tap are: elements from a row's pointer into A, and its index in B.
struct Tap {
  int64_t a, b;
};

// rows.out = epilogue(A · B) for panels [first_panel, last_panel) of B, summed over the given taps of B. With
// `pack_a`, A's rows are PackedRows; else they hold all channels.
void indirect_gemm(
    IndirectRows& rows, const PackedWeight& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue, const PackA* pack_a = nullptr);

// The same for a depthwise convolution in fp32: A's rows have B's columns, B (kPanels, kForward) has one channel. The
// columns are a multiple of a vector, and all taps one k-block.
void indirect_depthwise(
    IndirectRows& rows, const PackedWeight& b, c10::ArrayRef<Tap> taps, int64_t first_panel, int64_t last_panel,
    const Epilogue& epilogue);

}  // namespace memmod::cpu
