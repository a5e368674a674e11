#include "ei/engine/context.h"

#include <algorithm>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/decode/compress.h"
#include "ei/engine/logprobs.h"
#include "ei/engine/make_backend.h"
#include "ei/engine/memory_plan.h"
#include "ei/policy/settings.h"

namespace ei {
namespace {

// What helps a later prompt alone: where it fails, that prompt is read, and nobody's answer is
// hurt.
template <class F>
bool if_possible(const F& f) noexcept {
  try {
    f();
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

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
  const bool keeps_whole = prefixes_ != nullptr && prefixes_->keeps_anything();
  const MemoryPlan plan = plan_memory(engine_, request.prefill, request.decode, shape, page_bytes,
                                      n_prompt, n_total, keeps_whole);
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
  const DType half = on_gpu(engine_.options.device) ? DType::kFP8 : DType::kQ8;
  const bool halves = engine_.options.kv_type != half &&
                      (half == DType::kQ8 || PageLayout::has_fp8(shape.layout.head_dim));
  fail(
      "{} tokens need {} MiB ({} MiB of KV cache, {} MiB of activations), {} MiB are available "
      "beside {} MiB of weights, enough for a prompt of {} tokens; shorten it{} or generate fewer",
      n_total, need >> 20, plan.pages >> 20, plan.activations >> 20, have >> 20,
      engine_.model->weight_bytes() >> 20, fits,
      halves ? fmt::format(", take --kv-type {}", dtype_name(half)) : "");
}

KvShape Context::kv_shape(const PrefillPolicy& prefill) const {
  return engine_.kv_shape(prefill,
                          max_tokens_ > 0 ? max_tokens_ : engine_.model->config().max_positions);
}

// Tokens of the new prompt that this conversation has read already.
int64_t Context::own_prefix(int64_t window_rows) const {
  if (cache_->compacted() || !window_ || window_->n_rows() != window_rows) return 0;
  const auto differ = std::mismatch(tokens_.begin(), tokens_.end(), prompt_.begin(), prompt_.end());
  const int64_t n_equal = differ.first - tokens_.begin();
  // But for those of a conversation that it does not go on from.
  const auto other = std::ranges::find_if(asked_, [&](int64_t asked) { return asked > n_equal; });
  const int64_t n_own =
      other == asked_.end() ? n_equal : (other - asked_.begin()) * cache_->shape().layout.rows;
  return std::min({n_equal, n_own, reusable_});
}

std::unique_ptr<QueryWindow> Context::make_window(int64_t n_rows) const {
  const ModelConfig& config = engine_.model->config();
  return std::make_unique<QueryWindow>(*engine_.backend, config.n_layers, n_rows,
                                       config.n_heads * config.head_dim);
}

void Context::prepare(const PrefillPolicy& prefill) {
  if (plan_ && plan_->policy() == prefill) return;
  clear();
  Backend& backend = *engine_.backend;
  const KvShape shape = kv_shape(prefill);
  if (pool_ == nullptr) own_pool_ = std::make_unique<PagePool>(backend, shape.layout.bytes());
  cache_ = std::make_unique<KvCache>(backend, pool_ == nullptr ? *own_pool_ : *pool_, shape);
  plan_ = std::make_unique<PrefillPlan>(backend, prefill,
                                        engine_.prefill_shape(prefill, shape.max_tokens));
}

void Context::begin(std::vector<int32_t> prompt, const PrefillPolicy& prefill,
                    const DecodePolicy& decode, Hidden wanted, bool reuse) {
  const int64_t window_rows = Compressor::window_rows(decode);
  prepare(prefill);
  whole_.reset();
  prompt_ = std::move(prompt);
  wanted_ = wanted;
  stats_.reset();
  const int64_t n = n_prompt();
  // The window's queries and the last token's logits are made anew.
  limit_ = reuse && wanted == Hidden::kLast ? n - std::max<int64_t>(1, window_rows) : 0;
  const int64_t own = std::max<int64_t>(0, std::min(own_prefix(window_rows), limit_));
  const int64_t page = cache_->shape().layout.rows;
  n_cached_ = own / page * page;

  if (!window_ || window_->n_rows() != window_rows) window_ = make_window(window_rows);
  if (n_cached_ > 0) {
    cache_->truncate(n_cached_);
  } else {
    cache_->clear();
  }
  asked_.resize(std::min(asked_.size(), static_cast<size_t>(n_cached_ / page)));
  lost_ = {};
  n_host_ = n_loaded_ = 0;
  tokens_.assign(prompt_.begin(), prompt_.begin() + n_cached_);
  reusable_ = n_cached_;
  plan_->begin(n, n_cached_);
  if (plan_->wants_sketch()) plan_->use(&engine_.sketch());
}

bool Context::find_prefix(int64_t max_rows) {
  const int64_t before = n_read(), page = cache_->shape().layout.rows;
  if (prefixes_ == nullptr || before % page != 0 || before + unit_of(plan_->policy()) > limit_)
    return true;
  asked_.resize(static_cast<size_t>(before / page));
  const PrefixCache::Hit hit =
      prefixes_->restore(prompt_, limit_, plan_->policy(), *cache_, plan_->entropies(), asked_,
                         std::max<int64_t>(1, max_rows / page));
  const std::vector<int64_t> found = of_all(engine_.backend->ranks(), n_read());
  require(std::ranges::count(found, n_read()) == std::ssize(found),
          "the ranks remember {} tokens of the same prompt; one of them was short of memory",
          fmt::join(found, ", "));
  if (before == n_cached_) lost_ = hit.stopped_by;
  n_cached_ += n_read() - before;
  n_host_ += hit.n_host;
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
  if (n_read() == n_prompt() && engine_.backend->ranks().size() > 1) stats();  // all are here
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
  if (prefixes_ == nullptr || cache_->compacted()) return;
  if_possible([&] {
    prefixes_->remember(tokens_, reusable_, reusable_, plan_->policy(), *cache_, plan_->entropies(),
                        asked_);
  });
}

bool Context::keeps_answer() const {
  return plan_ && plan_->can_go_on() && wanted_ == Hidden::kLast && prefixes_ != nullptr &&
         prefixes_->keeps_anything();
}

void Context::reserve_whole() noexcept {
  if (whole_ && !if_possible([&] { whole_->reserve(1); })) whole_.reset();
}

void Context::compress(const std::function<void()>& action) {
  std::unique_ptr<KvCache> whole;
  if (!whole_ && keeps_answer())
    if_possible([&] {
      auto tail = std::make_unique<KvCache>(*engine_.backend, cache_->pool(), cache_->shape());
      tail->tail_of(*cache_, reusable_ / cache_->shape().layout.rows);
      whole = std::move(tail);
    });
  action();
  if (whole && cache_->compacted()) whole_ = std::move(whole);
}

void Context::wrote(int32_t token) {
  cache_->advance(1);
  if (whole_) whole_->advance(1);
  tokens_.push_back(token);
}

void Context::rewind() {
  cache_->rewind();
  if (whole_) whole_->rewind();
}

void Context::finish_answer() {
  if (!plan_) return;
  const KvCache* const whole = whole_ ? whole_.get() : cache_->compacted() ? nullptr : cache_.get();
  if (whole != nullptr && keeps_answer()) {
    const int64_t page = cache_->shape().layout.rows;
    std::vector<int64_t> asked = asked_;
    asked.resize(static_cast<size_t>(reusable_ / page));
    asked.resize(static_cast<size_t>(cache_->shape().layout.pages(n_read())), n_prompt());
    if_possible([&] {
      prefixes_->remember(tokens_, n_read(), n_prompt(), plan_->policy(), *whole,
                          plan_->entropies(), asked);
    });
  }
  // Answers of a dense conversation can be reused as well: they were read as a prompt would be.
  if (plan_->policy().is_dense()) reusable_ = plan_->reusable(n_read());
}

const PrefillStats& Context::stats() {
  if (stats_) return *stats_;
  stats_ = plan_->stats();
  Communicator& ranks = engine_.backend->ranks();
  stats_->attended_pairs = sum_of_all(ranks, stats_->attended_pairs);
  stats_->dense_pairs = sum_of_all(ranks, stats_->dense_pairs);
  stats_->kept_blocks = sum_of_all(ranks, stats_->kept_blocks);
  stats_->n_sparse = sum_of_all(ranks, stats_->n_sparse);
  stats_->rigid_heads = sum_of_all(ranks, stats_->rigid_heads);
  stats_->dynamic_heads = sum_of_all(ranks, stats_->dynamic_heads);
  return *stats_;
}

void Context::clear() {
  if (pool_ == nullptr && prefixes_ != nullptr) prefixes_->clear();  // pages of the pool that goes
  tokens_.clear();
  reusable_ = 0;
  plan_.reset();
  window_.reset();
  whole_.reset();
  cache_.reset();
  asked_.clear();
  own_pool_.reset();
}

}  // namespace ei
