#include <algorithm>
#include <cmath>
#include <memory>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/engine/batch.h"
#include "ei/engine/context.h"
#include "ei/engine/engine.h"
#include "ei/engine/engine_impl.h"
#include "ei/engine/identity.h"
#include "ei/engine/logprobs.h"
#include "ei/engine/sequence.h"
#include "ei/engine/session_file.h"
#include "ei/io/mapped_file.h"

namespace ei {

struct Session::Impl {
  Impl(Engine::Impl& e, int64_t prefix_bytes)
      : engine(e),
        context(e, prefix_bytes > 0 ? &prefixes : nullptr),
        prefixes(*e.backend, prefix_bytes) {}

  // A batch of one. What fails half way leaves nothing that could be gone on from.
  void run(Sequence& sequence, const std::stop_token& cancel,
           const std::function<void()>& after_step) {
    try {
      if (!batch) batch.emplace(engine, 1);
      batch->run(sequence, cancel, after_step);
    } catch (...) {
      clear();
      throw;
    }
  }
  // Does `mine` and, on the other ranks of this process, `theirs` with the session there.
  void on_all(const std::function<void()>& mine, const std::function<void(Session&)>& theirs) {
    if (twins.empty()) return mine();
    engine.threads->run([&](const std::shared_ptr<Communicator>& rank) {
      if (rank->rank() == 0) return mine();
      theirs(*twins[static_cast<size_t>(rank->rank() - 1)]);
    });
  }
  Generation generate(const Request& request, const Callbacks& callbacks,
                      const std::stop_token& cancel);
  std::vector<TokenScore> score(std::span<const int32_t> tokens, const Request& policies,
                                int64_t n_prefill, const Callbacks& callbacks,
                                const std::stop_token& cancel);
  void check_one_rank() const {
    require(
        engine.backend->ranks().size() == 1,
        "sessions are saved and loaded by one rank alone: several hold a part of the cache each");
  }
  void clear() {
    batch.reset();
    context.clear();
    text.clear();
  }

  Engine::Impl& engine;
  Context context;
  PrefixCache prefixes;       // its pages are of the context's pool: goes first
  std::vector<int32_t> text;  // of the conversation, as far as it was read, written or loaded
  std::optional<Batch> batch;
  std::vector<std::unique_ptr<Session>> twins;  // of the engine's other ranks
};

Session::Session(Engine& engine, int64_t prefix_bytes)
    : impl_(std::make_unique<Impl>(engine.impl(), prefix_bytes)) {
  for (Engine& other : engine.impl().others)
    impl_->twins.push_back(std::make_unique<Session>(other, prefix_bytes));
}
Session::~Session() { clear(); }

void Session::clear() {
  for (const auto& twin : impl_->twins) twin->clear();
  const std::lock_guard lock(impl_->engine.mutex);
  impl_->clear();
}

void Session::save(const std::filesystem::path& file, const PrefillPolicy& prefill,
                   const std::string& note) {
  impl_->check_one_rank();
  const std::lock_guard lock(impl_->engine.mutex);
  Context& context = impl_->context;
  context.prepare(prefill);
  NewFile to(file);
  const auto write = [&](std::vector<std::byte> piece) {
    seal(piece);
    write_piece(to, piece);
  };
  write(SessionHead{.model = OrderedJson::parse(cache_identity(impl_->engine)),
                    .policy = OrderedJson::parse(PrefixCache::text_of(prefill)),
                    .note = note}
            .bytes());
  impl_->prefixes.write(impl_->text, prefill, context.cache().shape().layout.rows, write);
  to.commit(/*to_disk=*/true);
}

std::string Session::load(const std::filesystem::path& file, const PrefillPolicy& prefill) {
  impl_->check_one_rank();
  const std::lock_guard lock(impl_->engine.mutex);
  const MappedFile mapped(file);
  const std::string& where = mapped.path();
  const SessionFile session = parse_session(mapped.bytes(), where);
  check_fields(session.head.model, OrderedJson::parse(cache_identity(impl_->engine)), "model",
               "take the model, --kv-type and kind of processor that it was saved with", where);
  check_fields(session.head.policy, OrderedJson::parse(PrefixCache::text_of(prefill)), "policy",
               "take the --prefill and its settings that it was saved with", where);
  Context& context = impl_->context;
  PrefixCache& prefixes = impl_->prefixes;
  context.prepare(prefill);

  PrefixCache::Key key = prefixes.root(prefill);
  std::vector<int32_t> text;
  for (const auto& bytes : session.images) {
    const PageImage image = parse_image(bytes, where);
    prefixes.read(image, where, prefill, context.cache(), context.plan().entropies(), key);
    text.insert(text.end(), image.tokens.begin(), image.tokens.end());
  }
  impl_->text = std::move(text);
  return session.head.note;
}

Generation Session::generate(const Request& request, const Callbacks& callbacks,
                             std::stop_token cancel) {
  Generation generation;
  impl_->on_all([&] { generation = impl_->generate(request, callbacks, cancel); },
                [&](Session& twin) { twin.generate(request); });
  return generation;
}

Generation Session::Impl::generate(const Request& request, const Callbacks& callbacks,
                                   const std::stop_token& cancel) {
  const std::lock_guard lock(engine.mutex);
  Sequence sequence(engine, context, request);
  int64_t n_read = 0;
  run(sequence, cancel, [&] {
    if (sequence.n_read() > n_read && callbacks.on_prefill)
      callbacks.on_prefill(sequence.n_read(), sequence.n_prompt(), sequence.n_cached());
    n_read = sequence.n_read();
    const Delta delta = sequence.take_delta();
    if (!delta.text.empty() && callbacks.on_text) callbacks.on_text(delta.text);
    if (callbacks.on_step) callbacks.on_step();
  });
  text = context.tokens();
  return sequence.result();
}

std::vector<TokenScore> Session::score(std::span<const int32_t> tokens, const Request& policies,
                                       int64_t n_prefill, const Callbacks& callbacks,
                                       std::stop_token cancel) {
  std::vector<TokenScore> scores;
  impl_->on_all([&] { scores = impl_->score(tokens, policies, n_prefill, callbacks, cancel); },
                [&](Session& twin) { twin.score(tokens, policies, n_prefill); });
  return scores;
}

std::vector<TokenScore> Session::Impl::score(std::span<const int32_t> tokens,
                                             const Request& policies, int64_t n_prefill,
                                             const Callbacks& callbacks,
                                             const std::stop_token& cancel) {
  Engine::Impl& e = engine;
  Backend& backend = *e.backend;
  const std::lock_guard lock(e.mutex);
  const auto n = static_cast<int64_t>(tokens.size());
  if (n_prefill < 0) n_prefill = n;
  require(n_prefill >= 1 && n_prefill <= n, "score: {} of {} tokens are prompt, expected 1 to all",
          n_prefill, n);
  require(n <= e.model->config().max_positions, "{} tokens, the model's context is {}", n,
          e.model->config().max_positions);

  std::vector<TokenScore> scores(tokens.size());
  // Scores the tokens that follow the positions from `at` on, whose logits these are.
  const auto take = [&](const Act& logits, int64_t at) {
    const int64_t n_known = std::min(logits.rows, n - 1 - at);
    if (n_known <= 0) return;
    const auto next = tokens.subspan(static_cast<size_t>(at + 1), static_cast<size_t>(n_known));
    const DeviceArray<int32_t, 1> targets(backend, next), argmax(backend, {n_known});
    const DeviceArray<float, 1> logprob(backend, {n_known});
    backend.run(TokenScores{.logits = logits.slice(0, n_known),
                            .targets = targets.view(),
                            .logprob = logprob.view(),
                            .argmax = argmax.view()});
    const auto logprobs = logprob.to_host(backend);
    const auto likeliest = argmax.to_host(backend);
    std::optional<LogitRows> rows;
    if (callbacks.on_logits) rows.emplace(backend, logits.slice(0, n_known));
    for (int64_t i = 0; i < n_known; ++i) {
      require(std::isfinite(logprobs[static_cast<size_t>(i)]),
              "the model computes NaN or infinity instead of the logits after {} tokens; its "
              "weights are damaged (download them again)",
              at + 1 + i);
      if (rows) callbacks.on_logits(at + 1 + i, (*rows)[i]);
      scores[static_cast<size_t>(at + 1 + i)] = {logprobs[static_cast<size_t>(i)],
                                                 likeliest[static_cast<size_t>(i)]};
    }
  };

  const auto prompt = tokens.first(static_cast<size_t>(n_prefill));
  const auto rest = tokens.subspan(prompt.size());
  Request request;
  request.tokens.assign(prompt.begin(), prompt.end());
  request.prefill = policies.prefill;
  request.decode = policies.decode;
  request.sampling = SamplingParams{};
  request.max_tokens = n - n_prefill;
  request.given.assign(rest.begin(), rest.end());
  request.ignore_eos = true;
  Sequence sequence(e, context, request, {.on_logits = take});
  int64_t n_read = 0;
  run(sequence, cancel, [&] {
    if (sequence.n_read() > n_read && callbacks.on_prefill)
      callbacks.on_prefill(sequence.n_read(), n_prefill, 0);
    n_read = sequence.n_read();
    if (callbacks.on_step) callbacks.on_step();
  });
  scores.resize(static_cast<size_t>(n_read) + sequence.result().tokens.size());
  if (sequence.result().read_tokens == n_prefill && callbacks.on_sparsity)
    callbacks.on_sparsity(sequence.result().sparsity);
  context.clear();  // of use to nobody: all of it is read whatever is known
  return scores;
}

}  // namespace ei
