#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ei/ops/weight_format.h"

namespace ei {

// What `entropyinfer info` shows.
struct ModelInfo {
  std::string architecture;   // e.g. LlamaForCausalLM
  std::string chat_template;  // the file it is in; empty: there is none, prompts are raw text
  std::string device;
  int64_t n_parameters = 0;
  int64_t n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int64_t hidden = 0, intermediate = 0, vocab_size = 0;
  int64_t max_context = 0;      // tokens the checkpoint was made for
  int64_t max_text_bytes = 0;   // a longer text has more tokens than that
  int64_t longest_context = 0;  // tokens that fit this machine's memory now, at most max_context
  int64_t longest_context_bytes = 0;  // that they take: cache, tables, selection, activations
  int64_t weight_bytes = 0;
  std::vector<std::pair<std::string, int64_t>> weight_formats;  // bytes of matrices by format
  int64_t activation_bytes = 0;                                 // of the tokens read at a time
  int64_t available_bytes = 0;         // of the device's memory, for activations and caches
  int64_t kv_bytes_per_token = 0;      // full cache, K and V of all layers
  int64_t bounds_bytes_per_token = 0;  // key bounds beside them, under the default prefill policy
  double load_ms = 0;
  std::vector<std::string> warnings;  // what is wrong and ignored, what will be slow
};

}  // namespace ei
