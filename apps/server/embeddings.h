#pragma once

#include <memory>
#include <vector>

#include "apps/server/completion.h"

namespace ei::server {

// Answers a request for vectors once its inputs are tokens: of each the hidden states after the
// final norm, of the last token or their mean, at length 1. Returns at once. Throws Refusal or
// Error before anything is sent.
void start_embeddings(CompletionContext& context, std::shared_ptr<Exchange> exchange,
                      EmbeddingRequest request, std::vector<std::vector<int32_t>> inputs);

}  // namespace ei::server
