#include "ei/decode/output_norms.h"

namespace ei {

DeviceArray<float, 2> output_norms(
    Backend& backend, const KvLayer& kv, int64_t n_heads, int64_t n_outputs,
    const std::function<void(int64_t head, const Act& out)>& columns) {
  const int64_t d = kv.layout.head_dim;
  constexpr auto kFloat = int64_t{sizeof(float)};
  const Buffer rows(backend, d * n_outputs * kFloat);
  const DeviceArray<float, 3> gram(backend, {n_heads, d, d});
  for (int64_t h = 0; h < n_heads; ++h) {
    const Act of_head = {rows.data(), d, n_outputs, kFloat};
    columns(h, of_head);
    const Weight again = {of_head.data, WeightFormat::kF32, d, n_outputs};
    backend.run(MatMul{
        .x = of_head,
        .parts = {{{.weight = again, .bias = {}, .out = {gram.view()[h].data, d, d, kFloat}}}}});
  }
  DeviceArray<float, 2> norms(backend, {n_heads, kv.rows_bound});
  backend.run(ValueNorms{.gram = gram.view(), .kv = kv, .norms = norms.view()});
  return norms;
}

}  // namespace ei
