#include "apps/eval/head_profile.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include "ei/engine/batch.h"
#include "ei/engine/context.h"
#include "ei/engine/engine_impl.h"
#include "ei/engine/sequence.h"

namespace ei::eval {
namespace {

// What `plan` selects for a layer and chunk, added to the layer's heads.
void add_selection(Backend& backend, const PrefillPlan& plan, const Chunk& chunk,
                   const PrefillPlan::Choice& choice, std::vector<Profile::Head>& heads) {
  const PrefillPolicy& policy = plan.policy();
  const int64_t n_heads = choice.selection.count.dim(0), n = choice.selection.count.dim(1);
  const int64_t first = chunk.begin / policy.segment, per_segment = policy.segment / policy.block;
  const auto to_host = [&]<class T, int N>(const View<T, N>& view) {
    std::vector<std::remove_const_t<T>> values(static_cast<size_t>(view.size()));
    backend.copy_out(values.data(), view.data, view.size() * int64_t{sizeof(T)});
    return values;
  };
  const auto count = to_host(choice.selection.count);
  const bool has_budgets = choice.tokens.size() > 0;
  const auto tokens = to_host(choice.tokens);
  const auto entropy = to_host(choice.entropy);
  const int64_t capacity = choice.selection.index.dim(2);
  const auto index = to_host(choice.selection.index);
  for (int64_t h = 0; h < n_heads; ++h)
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(h * n + i);
      const int64_t s = first + i, past = s * per_segment;
      const bool dense = count[at] == kAllBlocks;
      Profile::Head& head = heads[static_cast<size_t>(h)];
      head.segments.push_back(
          {.entropy = entropy[static_cast<size_t>(
               (i * choice.entropy.dim(1) + choice.entropy_layer) * n_heads + h)],
           .budget = has_budgets ? tokens[at] : float((dense ? past : count[at]) * policy.block),
           .blocks = dense ? past : count[at],
           .dense = dense});
      if (dense) continue;
      if (std::ssize(head.kept_by_distance) < s)
        head.kept_by_distance.resize(static_cast<size_t>(s), 0);
      for (int64_t j = 0; j < count[at]; ++j) {
        const int64_t b = index[at * static_cast<size_t>(capacity) + static_cast<size_t>(j)];
        head.kept_by_distance[static_cast<size_t>(s - b / per_segment - 1)] += 1;
      }
    }
}

// Counts of kept blocks become shares of those there were.
void finish(Profile::Head& head, const PrefillPolicy& policy) {
  std::vector<double> there(head.kept_by_distance.size(), 0);
  for (size_t s = 1; s < head.segments.size(); ++s)
    for (size_t d = 0; d < s && d < there.size() && !head.segments[s].dense; ++d)
      there[d] += double(policy.segment / policy.block);
  for (size_t d = 0; d < there.size(); ++d)
    if (there[d] > 0) head.kept_by_distance[d] /= there[d];
  head.rigid = !head.segments.empty();
  for (size_t s = 1; s < head.segments.size(); ++s)
    head.rigid &= head.segments[s].entropy < policy.budget.e_t;
}

// How the window's queries share their attention out over the prompt (METHOD.md 2.2).
void add_votes(Backend& backend, Context& context, const DecodePolicy& policy,
               std::vector<std::vector<Profile::Head>>& heads) {
  const KvCache& cache = context.cache();
  const int64_t n = cache.n_tokens() - policy.window;
  if (n <= 0) return;
  for (int l = 0; l < cache.shape().n_layers; ++l) {
    const KvLayer layer = cache.layer(l);
    const DeviceArray<float, 2> votes(backend, {layer.n_kv_heads(), n});
    backend.run(Vote{.window = context.window().ring(l),
                     .first = n % context.window().n_rows(),
                     .n_queries = policy.window,
                     .kv = layer,
                     .scale = 1 / std::sqrt(static_cast<float>(layer.layout.head_dim)),
                     .reduce = policy.reduce,
                     .votes = votes.view()});
    const auto host = votes.to_host(backend);
    for (int64_t h = 0; h < layer.n_kv_heads(); ++h) {
      auto& bins = heads[static_cast<size_t>(l)][static_cast<size_t>(h)].votes;
      bins.assign(Profile::kVoteBins, 0);
      for (int64_t j = 0; j < n; ++j)
        bins[static_cast<size_t>(j * Profile::kVoteBins / n)] +=
            double(host[static_cast<size_t>(h * n + j)]);
    }
  }
}

}  // namespace

Profile profile(Engine& engine, const Request& request, const Callbacks& callbacks,
                std::stop_token cancel) {
  Engine::Impl& e = engine.impl();
  const ModelConfig& config = e.model->config();
  const std::lock_guard lock(e.mutex);
  validate(request.decode);
  Request watched = request;  // with a window, but never compressed
  if (request.decode.is_full()) watched.decode = DecodePolicy();
  const DecodePolicy window = watched.decode;
  watched.decode.budget = int64_t{1} << 30;
  watched.decode.regrow = 0;
  watched.max_tokens = window.longest_gap() + 1;

  Profile out;
  out.segment = request.prefill.segment;
  out.block = request.prefill.block;
  out.heads.assign(static_cast<size_t>(config.n_layers),
                   std::vector<Profile::Head>(static_cast<size_t>(config.n_kv_heads)));
  Context context(e);
  Sequence sequence(e, context, watched);
  sequence.begin();
  context.plan().observe([&](int layer, const Chunk& chunk, const PrefillPlan::Choice& choice) {
    add_selection(*e.backend, context.plan(), chunk, choice, out.heads[static_cast<size_t>(layer)]);
  });
  Batch(e, 1).run(sequence, cancel, [&] {
    if (callbacks.on_prefill) callbacks.on_prefill(sequence.n_read(), sequence.n_prompt(), 0);
    if (callbacks.on_step) callbacks.on_step();
  });
  out.generation = sequence.result();
  for (auto& layer : out.heads)
    for (Profile::Head& head : layer) finish(head, request.prefill);
  if (out.generation.finish_reason != FinishReason::kCancelled)
    add_votes(*e.backend, context, window, out.heads);
  return out;
}

}  // namespace ei::eval
