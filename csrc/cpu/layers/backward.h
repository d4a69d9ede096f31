// What the backwards of linear layers and convolutions share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "gates/gates.h"
#include "layers/layers.h"

namespace memmod::cpu {

inline at::Tensor empty_result(const at::Tensor& like) {
  return at::empty({0}, like.options());
}

inline Gradients empty_gradients(const at::Tensor& like) {
  return {empty_result(like), empty_result(like), empty_result(like), empty_result(like), empty_result(like)};
}

// A call's needs by name, and what follows from them.
struct BackwardNeeds {
  explicit BackwardNeeds(const LayerGradCall& call)
      : dx(call.needs[0]),
        dweight(call.needs[1]),
        dbias(call.needs[2]),
        dmemory(call.needs[3]),
        dinput_memory(call.needs[4]),
        product(dx || dinput_memory),
        gated_dbias(dbias && call.modulation.gate_bias),
        dz(dweight || gated_dbias),
        ungated_dx(dinput_memory && call.modulation.gate == Gate::kIdentity) {
  }

  bool dx, dweight, dbias, dmemory, dinput_memory;
  bool product;      // of the gated gradient and the weight
  bool gated_dbias;  // the bias sums the gated gradient
  bool dz;           // the gated gradient itself
  bool ungated_dx;   // the product before the input's gates, which the identity gate's memory is summed with
};

// An input memory's sums belong to the product before its gates, if the gate is the identity, and else to the gated
// one. sum and gate: functions of the whole of dx.
template <typename Sum, typename GateDx>
void sum_and_gate(const BackwardNeeds& needs, const Sum& sum, const GateDx& gate) {
  if (needs.ungated_dx) {
    sum();
  }
  gate();
  if (needs.dinput_memory && !needs.ungated_dx) {
    sum();
  }
}

}  // namespace memmod::cpu
