#include "ei/engine/identity.h"

#include <fmt/format.h>

#include <algorithm>

#include "ei/engine/sketch.h"
#include "ei/io/checksum.h"
#include "ei/io/json.h"

namespace ei {

std::string cache_identity(const Engine::Impl& engine) {
  const ModelConfig& config = engine.model->config();
  constexpr int64_t kTokens = 64;
  const std::vector<int32_t> tokens = any_tokens(config, std::min(kTokens, config.max_positions));
  std::vector<float> values;
  std::vector<float> rows = read_keys(*engine.backend, *engine.model, tokens, &values);
  rows.insert(rows.end(), values.begin(), values.end());
  return OrderedJson{{"architecture", config.architecture},
                     {"layers", config.n_layers},
                     {"kv_heads", config.n_kv_heads},
                     {"head_dim", config.head_dim},
                     {"kv_type", dtype_name(engine.options.kv_type)},
                     {"page", engine.options.page},
                     {"weights", fmt::format("{:016x}", checksum(std::as_bytes(std::span(rows))))}}
      .dump();
}

}  // namespace ei
