#include "ei/engine/context.h"

#include <algorithm>

#include "ei/base/fail.h"
#include "ei/decode/compress.h"
#include "ei/engine/logprobs.h"
#include "ei/engine/make_backend.h"
#include "ei/engine/memory_plan.h"

namespace ei {

void Context::check(int64_t n_prompt, int64_t n_total, const Request& request) const {
  validate(request.prefill);
  validate(request.decode);
  const int64_t context = engine_.model->config().max_positions;
  require(n_prompt > 0, "the prompt is empty; give some text");
  // Whatever is only read may fill it.
  require(n_prompt + (request.max_tokens > 0) <= context,
          "the prompt has {} tokens, the model's context is {}; shorten the prompt", n_prompt,
          context);
  const KvShape shape = kv_shape(request.prefill);
  const int64_t page_bytes = pool_ == nullptr ? shape.layout.bytes() : pool_->page_bytes();
  const MemoryPlan plan =
      plan_memory(engine_, request.prefill, request.decode, shape, page_bytes, n_prompt, n_total);
  // A server has activations for all its sequences, a conversation that goes on those it began
  // with.
  const bool has_activations = pool_ != nullptr || cache_ != nullptr;
  const int64_t need = has_activations ? plan.sequence() : plan.total();
  // Pages of its own, those that it keeps for the next turn among them, are there for this one.
  const int64_t own = own_pool_ ? own_pool_->bytes_in_use() : cache_ ? cache_->bytes() : 0;
  const int64_t have = engine_.backend->available_bytes() + own;
  if (need <= have) return;
  const int64_t fits = longest_prompt(engine_, request.prefill, request.decode, shape, page_bytes,
                                      n_total - n_prompt, have);
  const bool halves = !on_gpu(engine_.options.device) && engine_.options.kv_type != DType::kQ8;
  fail(
      "{} tokens need {} MiB ({} MiB of KV cache, {} MiB of activations), {} MiB are available "
      "beside {} MiB of weights, enough for a prompt of {} tokens; shorten it{} or generate fewer",
      n_total, need >> 20, plan.pages >> 20, plan.activations >> 20, have >> 20,
      engine_.model->weight_bytes() >> 20, fits, halves ? ", take --kv-type q8_0" : "");
}

KvShape Context::kv_shape(const PrefillPolicy& prefill) const {
  return engine_.kv_shape(prefill,
                          max_tokens_ > 0 ? max_tokens_ : engine_.model->config().max_positions);
}

// Tokens of the new prompt that this conversation has read already.
int64_t Context::own_prefix(int64_t window_rows) const {
  if (cache_->compacted() || !window_ || window_->n_rows() != window_rows) return 0;
  const auto common = std::mismatch(tokens_.begin(), tokens_.end(), prompt_.begin(), prompt_.end());
  return std::min<int64_t>(common.first - tokens_.begin(), reusable_);
}

std::unique_ptr<QueryWindow> Context::make_window(int64_t n_rows) const {
  const ModelConfig& config = engine_.model->config();
  return std::make_unique<QueryWindow>(*engine_.backend, config.n_layers, n_rows,
                                       config.n_heads * config.head_dim);
}

void Context::begin(std::vector<int32_t> prompt, const PrefillPolicy& prefill,
                    const DecodePolicy& decode, Hidden wanted) {
  Backend& backend = *engine_.backend;
  const int64_t window_rows = Compressor::window_rows(decode);
  if (!plan_ || !(plan_->policy() == prefill)) {
    clear();
    const KvShape shape = kv_shape(prefill);
    if (pool_ == nullptr) own_pool_ = std::make_unique<PagePool>(backend, shape.layout.bytes());
    cache_ = std::make_unique<KvCache>(backend, pool_ == nullptr ? *own_pool_ : *pool_, shape);
    plan_ = std::make_unique<PrefillPlan>(backend, prefill,
                                          engine_.prefill_shape(prefill, shape.max_tokens));
  }
  prompt_ = std::move(prompt);
  wanted_ = wanted;
  stats_.reset();
  const int64_t n = n_prompt();
  // The window's queries and the last token's logits are made anew.
  limit_ = wanted == Hidden::kLast ? n - std::max<int64_t>(1, window_rows) : 0;
  const int64_t own = std::max<int64_t>(0, std::min(own_prefix(window_rows), limit_));
  const int64_t page = cache_->shape().layout.rows;
  n_cached_ = own / page * page;

  if (!window_ || window_->n_rows() != window_rows) window_ = make_window(window_rows);
  if (n_cached_ > 0) {
    cache_->truncate(n_cached_);
  } else {
    cache_->clear();
  }
  lost_ = {};
  n_loaded_ = 0;
  tokens_.assign(prompt_.begin(), prompt_.begin() + n_cached_);
  reusable_ = n_cached_;
  plan_->begin(n, n_cached_);
  if (plan_->wants_sketch()) plan_->use(&engine_.sketch());
}

bool Context::find_prefix(int64_t max_rows) {
  const int64_t before = n_read(), page = cache_->shape().layout.rows;
  if (prefixes_ == nullptr || before + page > limit_) return true;
  const PrefixCache::Hit hit =
      prefixes_->restore(prompt_, limit_, plan_->policy(), *cache_, plan_->entropies(),
                         std::max<int64_t>(1, max_rows / page));
  if (before == n_cached_) lost_ = hit.stopped_by;
  n_cached_ += n_read() - before;
  n_loaded_ += hit.n_loaded;
  return !hit.more;
}

void Context::fork(Context& read, const DecodePolicy& decode) {
  cache_ = std::make_unique<KvCache>(*engine_.backend, *pool_, kv_shape(read.plan_->policy()));
  cache_->fork(*read.cache_);
  window_ = make_window(Compressor::window_rows(decode));
  window_->copy(*read.window_, read.n_read());
  prompt_ = read.prompt_;
  tokens_ = prompt_;
  n_cached_ = n_prompt();
  stats_ = read.stats();
}

ChunkReader Context::next_chunk(Activations& act, int64_t max_rows) {
  return {*engine_.backend, *engine_.model, act,     *cache_, *window_,
          *plan_,           prompt_,        wanted_, max_rows};
}

void Context::end_chunk() {
  tokens_.assign(prompt_.begin(), prompt_.begin() + n_read());
  reusable_ = std::min(n_read(), plan_->reusable(n_prompt()));
  keep_prefix();
}

void Context::blame_layer(Activations& act, const Chunk& chunk) {
  const Model& model = *engine_.model;
  cache_->truncate(chunk.begin);
  plan_->begin(n_prompt(), chunk.begin);
  ChunkReader again = next_chunk(act, chunk.size + cache_->shape().layout.rows - 1);
  const int n_layers = model.config().n_layers;
  for (int layer = 0; layer < n_layers; ++layer) {
    again.read(1);
    require(is_finite(*engine_.backend, model.residual(act).slice(chunk.size - 1, 1)),
            "the model computes NaN or infinity, first in layer {} of 0 to {}; its weights are "
            "damaged (download them again), or too large for the type of its numbers",
            layer, n_layers - 1);
  }
  fail(
      "the model computes NaN or infinity, first in the final norm or the output matrix; its "
      "weights are damaged (download them again)");
}

void Context::keep_prefix() {
  if (prefixes_ != nullptr && !cache_->compacted())
    prefixes_->remember(tokens_, reusable_, plan_->policy(), *cache_, plan_->entropies());
}

void Context::finish_answer() {
  // Answers of a dense conversation can be reused as well: they were read as a prompt would be.
  if (plan_ && plan_->policy().is_dense()) reusable_ = plan_->reusable(n_read());
}

void Context::clear() {
  if (pool_ == nullptr && prefixes_ != nullptr) prefixes_->clear();  // pages of the pool that goes
  tokens_.clear();
  reusable_ = 0;
  plan_.reset();
  window_.reset();
  cache_.reset();
  own_pool_.reset();
}

}  // namespace ei
