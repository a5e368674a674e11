#include "ei/decode/sampler.h"

namespace ei {

Sampler::Sampler(Backend& backend, const SamplingParams& params, int64_t n_tokens,
                 std::span<const int32_t> prompt, int64_t max_new)
    : backend_(backend), params_(params), n_tokens_(n_tokens), token_(backend, {1}) {
  validate(params);
  if (params.repetition_penalty == 1) return;
  n_history_ = static_cast<int64_t>(prompt.size());
  history_ = DeviceArray<int32_t, 1>(backend, {n_history_ + max_new});
  backend.copy_in(history_.view().data, prompt.data(), n_history_ * int64_t{sizeof(int32_t)});
}

int32_t Sampler::next(const Act& logits) {
  const Sample::Row row = {
      .params = params_, .step = step_++, .history = {history_.view().data, {n_history_}}};
  backend_.run(
      Sample{.logits = logits, .rows = {&row, 1}, .n_tokens = n_tokens_, .token = token_.view()});
  int32_t token = 0;
  backend_.copy_out(&token, token_.view().data, sizeof(token));
  if (params_.repetition_penalty != 1)
    backend_.copy_in(history_.view().data + n_history_++, &token, sizeof(token));
  return token;
}

}  // namespace ei
