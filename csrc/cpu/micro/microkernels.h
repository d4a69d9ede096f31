// The micro-kernels, the inner loops of all products and passes: a table of functions per instruction set.
//
// Only plain structs and pointers here: the files that implement the tables are compiled for their instruction set, and
// an inline function that they share with others could be linked into code that must run anywhere.
#pragma once

#include <cstdint>

#include "base/element_type.h"

namespace memmod::cpu {

// The most rows that a tile of any instruction set has.
constexpr int64_t kMaxMr = 12;

// One tile of C = A · B: some rows (given by the function) by `columns` columns, summed over taps and their channels: a
// linear layer has one tap, a convolution one per element of its filter.
struct MicroTile {
  const float* const* a;     // [rows]
  const int64_t* a_offsets;  // [taps]: where a tap's channels are, from a row's pointer
  const int64_t* b_offsets;  // [taps]: where the tap's [channels, tile columns] are, from b
  const float* b;            // one packed panel, from the first channel of this call
  int64_t taps;
  int64_t a_channel, channels;  // where this call starts in A's rows, and how many channels it sums over
  int64_t a_step;               // from one group of `lanes` channels to the next in a row of A
  int64_t column, columns;      // the first column, and how many there are of the tile's width
  int64_t partial_stride;       // elements from a row of partial sums to the next; each has all of a tile's columns
  const float* partial_in;      // sums of earlier calls, or null for none
  float* partial_out;           // where to put the sums, or null: this is the last call, write `out`
  void* const* out;             // [rows]
  void* const* kept;            // [rows]: a second output, or null: the product before a bias that is not gated
  const float* bias;            // [columns of B] or null
  const float* const* gates;    // [rows]: multipliers [columns of B], or null
  bool gate_bias;               // the bias is gated too
  bool save_ungated;            // `kept` takes what the gate multiplies, instead of the result of it
  float floor;                  // the least value of `out`: 0 for a ReLU, -inf for none
};

struct MicroKernels {
  // Rows and columns of a full tile; mr is 0 where there is no tile: the library multiplies.
  int64_t mr, nr;
  // Floats of a vector.
  int64_t lanes;
  // Channels times taps that a pass over the rows sums up, at most.
  int64_t kc;
  // By type of the output and number of rows - 1.
  void (*gemm[kTypes][kMaxMr])(const MicroTile& tile);
  // By number of rows - 1: the tile of a depthwise convolution in fp32. A has the columns of B, which has one channel;
  // `columns` is a multiple of `lanes`.
  void (*depthwise[kMaxMr])(const MicroTile& tile);

  // By type of the output: what `gemm` does after its sums, for whole columns without a second output and for `rows`
  // rows whose sums are `stride` elements apart.
  void (*finish_rows[kTypes])(const MicroTile& tile, const float* sums, int64_t stride, int64_t rows);

  // Rows of `count` elements that lie `stride` (in y: y_stride) elements apart.
  // y[r, i] = x[r, i] * s[i]; s may be null (1), x and y may be the same.
  void (*scale_rows[kTypes])(
      const void* x, int64_t stride, const float* s, void* y, int64_t y_stride, int64_t rows, int64_t count);
  // The same into fp32, with groups of `lanes` elements of a row of y `y_step` apart.
  void (*widen_rows[kTypes])(
      const void* x, int64_t stride, const float* s, float* y, int64_t y_stride, int64_t y_step, int64_t rows,
      int64_t count);
  // sums[i] += Σ_r a[r, i] * b[r, i] in ascending r; on the way y[r, i] = a[r, i] * s[i] unless y is null.
  void (*reduce_rows[kTypes])(
      const void* a, const void* b, int64_t stride, const float* s, void* y, int64_t y_stride, float* sums,
      int64_t rows, int64_t count);
  // The same with every a[r, i] that has b[r, i] <= 0 taken as 0: after a ReLU with the outputs b.
  void (*reduce_relu_rows[kTypes])(
      const void* a, const void* b, int64_t stride, const float* s, void* y, int64_t y_stride, float* sums,
      int64_t rows, int64_t count);
  // reduce_rows with y in fp32 and its groups `y_step` apart.
  void (*reduce_widen_rows[kTypes])(
      const void* a, const void* b, int64_t stride, const float* s, float* y, int64_t y_stride, int64_t y_step,
      float* sums, int64_t rows, int64_t count);
  void (*reduce_widen_relu_rows[kTypes])(
      const void* a, const void* b, int64_t stride, const float* s, float* y, int64_t y_stride, int64_t y_step,
      float* sums, int64_t rows, int64_t count);
  // y[i] = x[i] * s.
  void (*scale_line[kTypes])(const void* x, float s, void* y, int64_t count);
  // Σ a[i] * b[i], and on the way y[i] = a[i] * s unless y is null.
  float (*reduce_line[kTypes])(const void* a, const void* b, float s, void* y, int64_t count);
  // y[i] = σ(sign * x[i]), sign 1 or -1; x and y may be the same.
  void (*sigmoid_row)(const float* x, float sign, float* y, int64_t count);

  // scale_rows and reduce_rows of fp32 into three bf16 planes, `plane` elements apart, whose sum y is: the first holds
  // the 8 leading bits of each y, the next ones the 8 bits that follow. Null where nothing multiplies planes.
  void (*split_bf16x3)(
      const float* x, int64_t stride, const float* s, uint16_t* y, int64_t y_stride, int64_t plane, int64_t rows,
      int64_t count);
  void (*reduce_split_bf16x3)(
      const float* a, const float* b, int64_t stride, const float* s, uint16_t* y, int64_t y_stride, int64_t plane,
      float* sums, int64_t rows, int64_t count);
  void (*reduce_split_relu_bf16x3)(
      const float* a, const float* b, int64_t stride, const float* s, uint16_t* y, int64_t y_stride, int64_t plane,
      float* sums, int64_t rows, int64_t count);
};

// Set up by the compiler (constexpr where they are defined): code of these files that runs while the library is loaded
// would stop a processor without their instructions.
extern const MicroKernels kPortable;
#if defined(__x86_64__) && defined(__GNUC__)
#define MEMMOD_X86
extern const MicroKernels kAvx2;
extern const MicroKernels kAvx512;
// kAvx512 with the processor's own conversion to bf16, which takes denormal values as 0. To be called only where the
// processor has it.
const MicroKernels& avx512_bf16();
#endif

// The table in use: that of the instruction set in cpu_features.h.
const MicroKernels& micro_kernels();

}  // namespace memmod::cpu
