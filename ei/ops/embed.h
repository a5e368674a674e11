#pragma once

#include "ei/ops/tensor.h"

namespace ei {

// out[i, :] = table[tokens[i], :]. Token ids are within [0, table.rows): the caller has checked.
struct Embed {
  View<const int32_t, 1> tokens;  // [n]
  Weight table;                   // [vocab_size, hidden]
  Act out;                        // [n, hidden]
};
void check(const Embed& op);

}  // namespace ei
