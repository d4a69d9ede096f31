// The host functions of the CUDA kernels: plain pointers and sizes, so that the tests' host shim can call them too.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#ifdef MEMMOD_HOST
using cudaStream_t = void*;
#else
using cudaStream_t = struct CUstream_st*;
#endif

namespace memmod {

enum class Gate : int { sigmoid = 0, identity = 1, hard = 2 };

// A memory [classes, width] and what each sample selects of it, index [samples, sets]; without a memory gates are 1.
struct Selection {
  const float* memory;
  const int64_t* index;
  int64_t classes, width, sets;
  Gate gate;
};

enum class Type : int { fp32, bf16, fp16 };

// Calls fn with a number of that type.
template <typename Function>
void with_type(Type type, Function fn) {
  if (type == Type::fp32) return fn(float{});
  if (type == Type::bf16) return fn(c10::BFloat16{});
  return fn(c10::Half{});
}

// Rows, and lines of inner > 1 numbers, are counted in 32 bits: a 64-bit division is a call, for which registers spill.

// One pass over x [samples, rows, width, inner]: y = s x + bias, and sums [samples, P, width] of x other (of s x
// without other) over `chunk` rows (without sums as many as suits), or where inner > 1 over `chunk` numbers of a row's
// line, at a time. Null: absent. bias_inside, without other: s (x + bias) instead of s x + bias, and in the sums. relu:
// a ReLU behind y; with other, which is then the result of that ReLU, x counts as 0 where it is not positive.
struct Modulate {
  const void *x, *other, *bias;
  void* y;
  float* sums;
  Selection selection;
  int64_t samples, width, inner;
  int rows, chunk;
  bool bias_inside, relu;
};
void modulate(Type type, const Modulate& call, cudaStream_t stream);

// dmemory [classes, width] from a b (a without b) [samples, parts, width], fp32 without b: the sums over the samples
// that select a class, times the derivative of its gate.
struct ClassSums {
  const void *a, *b;
  float* dmemory;
  Selection selection;
  int64_t samples, parts;
};
void class_sums(Type type, const ClassSums& call, cudaStream_t stream);

// y [rows, units] = s_out (s_in x W^T + bias), bias after the gate unless gate_bias, for at most SMALL_ROWS rows; row
// r belongs to sample r / rows_per_sample. saved (null: not kept): the gated product, or that before its gate if
// save_ungated.
constexpr int SMALL_ROWS = 16;
struct LinearSmall {
  const void *x, *weight, *bias;
  void *y, *saved;
  Selection out, in;
  int64_t units, inputs;
  int rows, rows_per_sample;
  bool gate_bias, save_ungated;
};
void linear_small(Type type, const LinearSmall& call, cudaStream_t stream);

// As linear_small without gates of the inputs, for 16 bits and many rows: samples of at least FUSED_ROWS rows, inputs
// and units multiples of 8, x, weight, bias and y at multiples of 16 bytes. relu: a ReLU behind all.
constexpr int FUSED_ROWS = 43;
struct LinearFused {
  const void *x, *weight, *bias;
  void* y;
  Selection out;
  int units, inputs, rows, rows_per_sample;
  bool gate_bias, relu;
  // Of a tile of y: 128, 192 or 256, or 0 for the choice by shape.
  int columns;
};
void linear_fused(Type type, const LinearFused& call, cudaStream_t stream);
// Whether a device has its instructions, and the extension its code.
bool has_linear_fused(int device);

// A convolution of x [images, height, width, inputs] by weight [units, kernel_h, kernel_w, inputs] into y [images,
// out_height, out_width, units], gated as above, with an optional ReLU behind all; image i belongs to sample i /
// images_per_sample. transposed: x is the gradient of a convolution with these options, y that of its input.
struct Conv2d {
  const void *x, *weight, *bias;
  void *y, *saved;
  Selection out;
  int images_per_sample, images, height, width, inputs, units, kernel_h, kernel_w, out_height, out_width;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  bool gate_bias, save_ungated, relu, transposed, tf32;
  // Set by conv2d(): y and saved start at multiples of 16 bytes.
  bool aligned;
};
void conv2d(Type type, const Conv2d& call, cudaStream_t stream);

}  // namespace memmod
