#pragma once

#include <cstdint>
#include <vector>

#include "ei/engine/engine.h"

namespace ei::bench {

// n token ids, the same for the same engine: of made-up sentences when there is a tokenizer, else
// scattered over the vocabulary.
std::vector<int32_t> text_prompt(const Engine& engine, int64_t n);
std::vector<int32_t> random_prompt(const Engine& engine, int64_t n);

}  // namespace ei::bench
