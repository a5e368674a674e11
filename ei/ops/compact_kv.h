#pragma once

#include "ei/ops/keep_top.h"
#include "ei/ops/kv.h"

namespace ei {

// Copies the kept rows of every head into a smaller cache and sets its n_rows. Head h of `to` takes
// from head h / (to heads / from heads): one to one, or per query head (METHOD.md 3, line 5).
struct CompactKv {
  KvLayer from;
  Keep keep;   // over the heads of `to`
  KvLayer to;  // same type and head_dim; no page shared with `from`; key bounds are not made
};
void check(const CompactKv& op);

}  // namespace ei
