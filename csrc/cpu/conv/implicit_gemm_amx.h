// fp32 convolutions of channels_last images with stride 1 by AMX: see gemm/bf16_gemm.h for how fp32 becomes bf16.
#pragma once

#include "conv/conv_shape.h"
#include "conv/implicit_gemm.h"
#include "gemm/pack.h"

namespace memmod::cpu {

// Whether AMX is expected to take less time than the tiles: from the shape only.
bool amx_supports(const ConvShape& shape);
bool amx_supports_backward(const ConvShape& shape);

void implicit_gemm_amx(const ConvForward& layer, const ConvShape& shape, const PackedWeight& weight);
void implicit_gemm_amx_backward(const ConvBackward& layer, const ConvShape& shape, const PackedWeight& weight);

// The samples of each row task of a backward, for ClassSums.
std::vector<std::pair<int64_t, int64_t>> amx_backward_samples(const ConvShape& shape, int64_t images_per_sample);

}  // namespace memmod::cpu
