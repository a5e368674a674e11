#pragma once

#include <functional>

#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"
#include "ei/ops/kv.h"

namespace ei {

// How long what each row of a layer's cache can add to the layer's output is, for every query head:
// |W v| [n_heads, rows], W [n_outputs, d] the part of the output matrix that multiplies the head's
// values. columns(head, out) writes its columns as rows: out [d, n_outputs]. On the CPU alone,
// whose activations are floats.
DeviceArray<float, 2> output_norms(
    Backend& backend, const KvLayer& kv, int64_t n_heads, int64_t n_outputs,
    const std::function<void(int64_t head, const Act& out)>& columns);

}  // namespace ei
