#include "tests/support/small_engine.h"

#include "ei/engine/engine_impl.h"
#include "tests/support/files.h"

namespace ei::test {

SmallEngine::SmallEngine()
    : engine(kNeedle, {.device = Device::kCpu, .threads = 1, .page = kSegment, .chunk = 32}) {
  Engine::Impl& e = engine.impl();
  ModelConfig config = e.model->config();
  config.n_layers = 2;
  config.hidden = config.intermediate = 32;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 16;
  config.max_positions = 1024;
  e.model.reset();
  auto probed = std::make_unique<ProbedBackend>(std::move(e.backend));
  backend = probed.get();
  e.backend = std::move(probed);
  e.model = std::make_unique<Model>(Model::random(*backend, config, /*seed=*/1));
}

Request SmallEngine::request(int64_t n_prompt, int32_t seed) {
  Request request;
  for (int32_t i = 0; i < n_prompt; ++i)
    request.tokens.push_back(300 + (i * 37 + seed * 101 + i * i % 11) % 3000);
  request.prefill.segment = kSegment;
  request.prefill.block = 4;
  request.prefill.budget.base = 16;
  request.prefill.threshold_len = kSegment;
  request.prefill.dense_tail = 4;
  request.decode = DecodePolicy::full();
  request.sampling = SamplingParams{};
  request.max_tokens = 8;
  request.ignore_eos = true;
  return request;
}

PrefillPolicy SmallEngine::sketch() {
  PrefillPolicy policy = PrefillPolicy::sketch();
  policy.segment = 8;
  policy.block = 4;
  policy.mass = 0.6f;
  policy.threshold_len = kSegment;
  policy.dense_tail = 4;
  policy.sink = policy.local = 4;
  return policy;
}

DecodePolicy small_decode(int64_t gap) {
  DecodePolicy policy;
  policy.budget = 16;
  policy.window = 4;
  policy.gap = gap;
  policy.regrow = 8;
  return policy;
}

}  // namespace ei::test
