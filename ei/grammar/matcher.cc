#include "ei/grammar/matcher.h"

#include <algorithm>

#include "ei/base/fail.h"

namespace ei::grammar {
namespace {

// In numbers of 4 bytes: what is kept, and what one look through the vocabulary may add.
constexpr size_t kMaxCache = 4 << 20, kMaxFound = 2 << 20;
// Threads of a reader; of those looked at, so many in one look and for one answer: tenths of a
// second, and seconds.
constexpr size_t kMaxThreads = 2048, kMaxLook = 1 << 20, kMaxAnswer = 16 << 20;

}  // namespace

size_t TokenGrammar::Hash::operator()(const Threads& threads) const {
  uint64_t hash = threads.size();
  for (const Thread& thread : threads) {
    hash = hash * 0x9E3779B97F4A7C15ull + thread.size();
    for (const int32_t node : thread)
      hash = (hash ^ static_cast<uint32_t>(node)) * 0xBF58476D1CE4E5B9ull;
    hash ^= hash >> 31;
  }
  return hash;
}

TokenGrammar::TokenGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> tokens)
    : grammar_(std::move(grammar)), tokens_(std::move(tokens)), cache_(std::make_shared<Cache>()) {
  grammar_.prune();
  Threads threads;
  std::set<Thread> seen;
  close({grammar_.start}, seen, threads);
  require(seen.size() <= kMaxThreads, "the schema is too ambiguous: it begins in over {} ways",
          kMaxThreads);
}

// What of a thread waits for a byte, once all that can happen without one has. An ended text is a
// thread of nothing but kEnd.
void TokenGrammar::close(Thread thread, std::set<Thread>& seen, Threads& out) const {
  std::vector<Thread> open;
  open.push_back(std::move(thread));
  while (!open.empty()) {
    thread = std::move(open.back());
    open.pop_back();
    while (thread.back() == kEnd && thread.size() > 1) thread.pop_back();
    if (!grammar_.can_end(thread.back(), thread.size())) continue;
    if (!seen.insert(thread).second) continue;
    if (seen.size() > kMaxThreads) return;
    const Grammar::Node& node = grammar_.nodes[static_cast<size_t>(thread.back())];
    for (const int32_t next : node.free) {
      open.push_back(thread);
      open.back().back() = next;
    }
    for (const Grammar::Call& call : node.calls) {
      if (call.shallow && thread.size() > Grammar::kMaxNesting) continue;
      if (!grammar_.can_end(call.next, thread.size())) continue;
      Thread& other = open.emplace_back(thread);
      other.back() = call.next;
      if (call.next == kEnd) other.pop_back();  // nothing of this rule is left
      other.push_back(call.rule);
    }
    if (!node.edges.empty() || thread.back() == kEnd) out.push_back(std::move(thread));
  }
}

TokenGrammar::State* TokenGrammar::intern(Cache& cache, Threads threads) const {
  if (threads.empty()) return nullptr;
  std::ranges::sort(threads);
  const auto [it, is_new] = cache.states.try_emplace(std::move(threads));
  State& state = it->second;
  if (!is_new) return &state;
  state.threads = &it->first;
  state.next.fill(&cache.unknown);
  for (const Thread& thread : it->first) {
    state.can_end |= thread.back() == kEnd;
    cache.size += thread.size() + 8;
  }
  cache.size += sizeof(State) / 4 + 16;
  return &state;
}

TokenGrammar::State* TokenGrammar::next(Cache& cache, State& state, uint8_t byte) const {
  State*& known = state.next[byte];
  if (known != &cache.unknown) return known;
  Threads threads;
  std::set<Thread> seen;
  for (const Thread& thread : *state.threads) {
    for (const Grammar::Edge& edge : grammar_.nodes[static_cast<size_t>(thread.back())].edges) {
      if (byte < edge.low || byte > edge.high) continue;
      Thread other = thread;
      other.back() = edge.next;
      close(std::move(other), seen, threads);
    }
  }
  cache.work += state.threads->size() + seen.size();
  if (seen.size() > kMaxThreads) {
    threads.clear();
    cache.cut = true;
  }
  return known = intern(cache, std::move(threads));
}

void TokenGrammar::find_allowed(Cache& cache, State& state) const {
  const std::span<const TokenTrie::Node> nodes = tokens_->nodes();
  std::vector<uint32_t> allowed((tokens_->n_tokens() + 31) / 32);
  const auto allow = [&](int32_t token) {
    allowed[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
  };
  std::vector<State*> path(tokens_->max_depth() + 1);
  path[0] = &state;
  // Patterns can lead to ever new states: what was not looked at by then is left out.
  const size_t most = cache.size + kMaxFound, most_work = cache.work + kMaxLook;
  for (size_t i = 0; i < nodes.size() && cache.size < most && cache.work < most_work;) {
    const TokenTrie::Node& node = nodes[i];
    State* const reached = next(cache, *path[node.depth], node.byte);
    if (reached == nullptr) {
      i = node.skip;
      continue;
    }
    path[node.depth + size_t{1}] = reached;
    if (node.token >= 0) allow(node.token);
    ++i;
  }
  if (state.can_end)
    for (const int32_t end : tokens_->ends()) allow(end);
  cache.size += allowed.size();
  state.allowed = std::move(allowed);
}

Matcher::Matcher(std::shared_ptr<TokenGrammar> grammar) : grammar_(std::move(grammar)) {
  const std::lock_guard lock(grammar_->mutex_);
  cache_ = grammar_->cache_;
  TokenGrammar::Threads threads;
  std::set<TokenGrammar::Thread> seen;
  grammar_->close({grammar_->grammar_.start}, seen, threads);
  state_ = grammar_->intern(*cache_, std::move(threads));
}

std::span<const uint32_t> Matcher::allowed() {
  const std::lock_guard lock(grammar_->mutex_);
  if (state_ == nullptr) return {};
  if (!state_->allowed.empty()) return state_->allowed;  // and there are some
  if (cache_->size > kMaxCache) {
    if (grammar_->cache_ == cache_) grammar_->cache_ = std::make_shared<TokenGrammar::Cache>();
    state_ = grammar_->intern(*grammar_->cache_, *state_->threads);
    cache_ = grammar_->cache_;
  }
  require(work_ < kMaxAnswer, "the answer's schema is too much work to follow");
  const size_t before = cache_->work;
  grammar_->find_allowed(*cache_, *state_);
  work_ += cache_->work - before;
  if (cache_->cut && std::ranges::count(state_->allowed, 0u) == std::ssize(state_->allowed)) {
    state_->allowed.clear();
    fail("the answer's schema is too ambiguous: it goes on in over {} ways", kMaxThreads);
  }
  return state_->allowed;
}

bool Matcher::must_end() const {
  return state_ == nullptr || (state_->can_end && state_->threads->size() == 1);
}

bool Matcher::accept(std::string_view bytes) {
  const std::lock_guard lock(grammar_->mutex_);
  for (const char byte : bytes) {
    if (state_ == nullptr) break;
    state_ = grammar_->next(*cache_, *state_, static_cast<uint8_t>(byte));
  }
  return state_ != nullptr;
}

bool Matcher::accept(int32_t token) { return accept(grammar_->tokens_->bytes(token)); }

}  // namespace ei::grammar
