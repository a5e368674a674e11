#include "ei/cache/prefix_cache.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "ei/cpu/backend.h"
#include "ei/prefill/prefill.h"
#include "tests/support/files.h"
#include "tests/support/probed_backend.h"

namespace ei::test {
namespace {

constexpr int64_t kSegment = 64, kMaxTokens = 24 * kSegment;

ModelConfig small_config() {
  ModelConfig config;
  config.hidden = 64;
  config.intermediate = 96;
  config.n_layers = 3;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 16;
  config.vocab_size = 97;
  config.max_positions = kMaxTokens;
  return config;
}

// Sparse from the third segment on, but for the first layer.
PrefillPolicy sparse() {
  PrefillPolicy policy;
  policy.segment = kSegment;
  policy.budget.base = 64;
  policy.threshold_len = 2 * kSegment;
  policy.dense_tail = 16;
  return policy;
}
PrefillPolicy dense() {
  PrefillPolicy policy = PrefillPolicy::dense();
  policy.segment = kSegment;
  return policy;
}

std::vector<int32_t> random_tokens(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(int32_t(random() % 97));
  return tokens;
}

class PrefixCacheTest : public testing::Test {
 protected:
  static KvShape shape(const PrefillPolicy& policy) {
    return {.n_layers = 3,
            .n_kv_heads = 2,
            .layout = {.head_dim = 16, .rows = kSegment, .block = policy.is_dense() ? 0 : 8},
            .max_tokens = kMaxTokens};
  }

  // Reads prompts segment by segment, so that every product has as many rows whatever was cached.
  struct Reader {
    Reader(PrefixCacheTest& test, const PrefillPolicy& policy)
        : test(test),
          cache(test.backend, test.pool, shape(policy)),
          plan(test.backend, policy,
               {.n_layers = 3,
                .n_heads = 4,
                .n_kv_heads = 2,
                .head_dim = 16,
                .max_tokens = kMaxTokens,
                .page = kSegment,
                .chunk = kSegment}) {}

    PrefixCache::Hit restore(const std::vector<int32_t>& prompt, PrefixCache& prefixes,
                             int64_t max_loads = INT64_MAX) {
      asked.resize(size_t(cache.n_tokens() / kSegment));
      return prefixes.restore(prompt, std::ssize(prompt) - 1, plan.policy(), cache,
                              plan.entropies(), asked, max_loads);
    }
    // The logits of the last token.
    std::vector<float> read(const std::vector<int32_t>& prompt) {
      const auto n = std::ssize(prompt);
      Activations act(test.backend, test.model.config(), kSegment, 1);
      QueryWindow window(test.backend, 3, 0, 64);
      plan.begin(n, cache.n_tokens());
      while (cache.n_tokens() < n)
        prefill_chunk(test.backend, test.model, act, cache, window, plan, prompt, Hidden::kLast);
      const Act logits = test.model.logits(act, act.rows() - 1, 1);
      const auto* values = static_cast<const float*>(logits.data);
      return {values, values + logits.cols};
    }
    void remember(const std::vector<int32_t>& prompt, PrefixCache& prefixes) {
      const int64_t n = plan.reusable(std::ssize(prompt));
      prefixes.remember(prompt, n, n, plan.policy(), cache, plan.entropies(), asked);
    }
    // A prompt of n_prompt tokens, and an answer behind it.
    void remember(const std::vector<int32_t>& text, int64_t n_prompt, PrefixCache& prefixes) {
      asked.resize(size_t(plan.reusable(n_prompt) / kSegment));
      asked.resize(text.size() / kSegment + 1, n_prompt);
      prefixes.remember(text, std::ssize(text), n_prompt, plan.policy(), cache, plan.entropies(),
                        asked);
    }

    PrefixCacheTest& test;
    KvCache cache;
    PrefillPlan plan;
    std::vector<int64_t> asked;
  };

  ProbedBackend backend{make_cpu_backend(2)};
  Model model = Model::random(backend, small_config(), 1);
  PagePool pool{backend, shape(sparse()).layout.bytes()};
};

TEST_F(PrefixCacheTest, RestoredReadsOnAsIfAllHadBeenRead) {
  const auto first = random_tokens(20 * kSegment + 30, 1);
  auto second = random_tokens(17 * kSegment + 20, 2);
  std::copy_n(first.begin(), 14 * kSegment + 7, second.begin());
  for (const PrefillPolicy& policy : {sparse(), dense()}) {
    PrefixCache prefixes(backend, int64_t{1} << 30);
    {
      Reader reader(*this, policy);
      reader.read(first);
      if (!policy.is_dense()) {
        EXPECT_LT(reader.plan.stats().attended_pairs, 0.7 * reader.plan.stats().dense_pairs);
      }
      reader.remember(first, prefixes);
      EXPECT_EQ(prefixes.n_pages(), 20);
      reader.remember(first, prefixes);  // nothing new
      EXPECT_EQ(prefixes.n_pages(), 20);
    }
    // The pages live on without the cache that they were read into.
    EXPECT_EQ(pool.bytes_in_use(), 20 * 3 * 2 * pool.page_bytes());
    EXPECT_GE(prefixes.bytes(), pool.bytes_in_use());
    EXPECT_LT(prefixes.bytes(), 1.01 * double(pool.bytes_in_use()));

    Reader anew(*this, policy), restored(*this, policy);
    const auto want = anew.read(second);
    const int64_t in_use = pool.bytes_in_use();
    backend.n_copies = 0;
    const PrefixCache::Hit hit = restored.restore(second, prefixes);
    EXPECT_EQ(hit.n_tokens, 14 * kSegment);
    EXPECT_EQ(hit.stopped_by, "the text differs from token 903 on");
    EXPECT_LE(backend.n_copies, 3);  // of 14 segments of three layers
    EXPECT_EQ(pool.bytes_in_use(), in_use);
    EXPECT_EQ(restored.read(second), want);
    EXPECT_EQ(restored.cache.bytes(), anew.cache.bytes());
    // What it has read is as good as the first reading: others can be restored from it.
    restored.remember(second, prefixes);
    Reader third(*this, policy);
    EXPECT_EQ(third.restore(second, prefixes).n_tokens, 17 * kSegment);
    EXPECT_EQ(third.read(second), want);
  }
}

TEST_F(PrefixCacheTest, KeepsPoliciesApart) {
  const auto prompt = random_tokens(6 * kSegment + 20, 3);
  PrefixCache prefixes(backend, int64_t{1} << 30);
  Reader reader(*this, sparse());
  reader.read(prompt);
  reader.remember(prompt, prefixes);
  const std::function<void(PrefillPolicy&)> changes[] = {
      [](PrefillPolicy& p) { p.block = 16; },
      [](PrefillPolicy& p) { p.budget.base = 65; },
      [](PrefillPolicy& p) { p.budget.e_t *= 2; },
      [](PrefillPolicy& p) { p.budget.delta_t = 0.5f; },
      [](PrefillPolicy& p) { p.budget.alpha = 0; },
      [](PrefillPolicy& p) { p.budget.max_factor = 2; },
      [](PrefillPolicy& p) { p.budget.rigid_whole_prompt = true; },
      [](PrefillPolicy& p) { p.budget.max_over_heads = true; },
      [](PrefillPolicy& p) { p.threshold_len = kSegment; },
      [](PrefillPolicy& p) { p.dense_layers = 0; },
      [](PrefillPolicy& p) { p.dense_tail = 0; },
      [](PrefillPolicy& p) { p.rank = Rank::kProbability; },
      [](PrefillPolicy& p) { p.fusion = 0.5f; },
      [](PrefillPolicy& p) { p.scale_scores = true; },
      [](PrefillPolicy& p) { p.estimate = Estimate::kMeanKeys; },
      [](PrefillPolicy& p) { p.mass = 0.5f; },
      [](PrefillPolicy& p) { p.by_entropy = true; },
      [](PrefillPolicy& p) { p.share = 0.5f; },
      [](PrefillPolicy& p) { p.stride = 4; },
      [](PrefillPolicy& p) { p.sink = 1; },
      [](PrefillPolicy& p) { p.local = 1; }};
  for (size_t i = 0; i < std::size(changes); ++i) {
    PrefillPolicy policy = sparse();
    changes[i](policy);
    Reader other(*this, policy);
    const PrefixCache::Hit hit = other.restore(prompt, prefixes);
    EXPECT_EQ(hit.n_tokens, 0) << i;
    EXPECT_EQ(hit.stopped_by, "it was read under another policy") << i;
  }
  Reader same(*this, sparse());
  EXPECT_EQ(same.restore(prompt, prefixes).n_tokens, 6 * kSegment);
}

TEST_F(PrefixCacheTest, EvictsWhatWasUsedLongestAgoAndItsEndsFirst) {
  const auto a = random_tokens(5 * kSegment, 4), b = random_tokens(5 * kSegment, 5);
  const int64_t segment_bytes = 3 * 2 * pool.page_bytes();
  PrefixCache prefixes(backend, 7 * segment_bytes + segment_bytes / 2);
  Reader of_a(*this, sparse()), of_b(*this, sparse());
  of_a.read(a);
  of_a.remember(a, prefixes);  // four segments: the fifth is the tail
  of_b.read(b);
  of_b.remember(b, prefixes);
  EXPECT_EQ(prefixes.n_pages(), 7);
  EXPECT_LE(prefixes.bytes(), 7 * segment_bytes + segment_bytes / 2);
  of_a.cache.clear();
  of_b.cache.clear();
  EXPECT_EQ(pool.bytes_in_use(), 7 * segment_bytes);
  const auto found = [&](const std::vector<int32_t>& prompt) {
    Reader reader(*this, sparse());
    return reader.restore(prompt, prefixes);
  };
  EXPECT_EQ(found(b).n_tokens, 4 * kSegment);
  EXPECT_EQ(found(a).n_tokens, 3 * kSegment);
  EXPECT_EQ(found(a).stopped_by, "evicted from token 192 on");
  // Now a was used last: what comes next takes the place of b's end.
  const auto c = random_tokens(2 * kSegment, 6);
  Reader of_c(*this, sparse());
  of_c.read(c);
  of_c.remember(c, prefixes);
  EXPECT_EQ(found(a).n_tokens, 3 * kSegment);
  EXPECT_EQ(found(b).n_tokens, 3 * kSegment);
  prefixes.clear();
  of_c.cache.clear();
  EXPECT_EQ(pool.bytes_in_use(), 0);
}

// What another process read: the same files, another cache.
TEST_F(PrefixCacheTest, RestoresFromFilesAsIfAllHadBeenRead) {
  const auto prompt = random_tokens(9 * kSegment + 30, 8);
  const TempDir dir;
  std::vector<std::string> warnings;
  const auto options = [&] {
    return PageStore::Options{.directory = dir.path(),
                              .max_bytes = int64_t{1} << 30,
                              .warn = [&](const std::string& what) { warnings.push_back(what); }};
  };
  for (const PrefillPolicy& policy : {sparse(), dense()}) {
    Reader anew(*this, policy);
    const auto want = anew.read(prompt);
    {
      PageStore store(options());
      PrefixCache prefixes(backend, 0, nullptr, &store, "this model");  // no memory of its own
      anew.remember(prompt, prefixes);
      EXPECT_EQ(prefixes.n_pages(), 0);
    }
    PageStore store(options());
    {
      PrefixCache prefixes(backend, int64_t{1} << 30, nullptr, &store, "this model");
      Reader restored(*this, policy);
      const PrefixCache::Hit hit = restored.restore(prompt, prefixes);
      EXPECT_EQ(hit.n_tokens, 9 * kSegment);
      EXPECT_EQ(hit.n_loaded, 9 * kSegment);
      EXPECT_EQ(restored.read(prompt), want);
      Reader again(*this, policy);
      EXPECT_EQ(again.restore(prompt, prefixes).n_loaded, 0);  // they are in memory now
    }
    {
      PrefixCache prefixes(backend, 0, nullptr, &store, "this model");
      Reader restored(*this, policy);
      for (int64_t n = 1; n <= 9; ++n) {
        const PrefixCache::Hit hit = restored.restore(prompt, prefixes, 1);
        EXPECT_EQ(hit.n_tokens, n * kSegment);
        EXPECT_EQ(hit.more, n < 9);
      }
      EXPECT_EQ(restored.read(prompt), want);
      PrefixCache others(backend, 0, nullptr, &store, "another model");
      EXPECT_EQ(Reader(*this, policy).restore(prompt, others).n_tokens, 0);
    }
  }
  EXPECT_EQ(warnings, std::vector<std::string>());
}

// The dense tail of a prompt and its answer are found by those who go on from there, and by no
// others: in memory, and in another process' files.
TEST_F(PrefixCacheTest, AConversationsOwnPagesAreItsOwn) {
  constexpr int64_t kPrompt = 9 * kSegment + 10, kText = kPrompt + 50;
  PrefillPolicy policy = sparse();
  policy.dense_tail = 100;  // two pages before the last
  const auto text = random_tokens(kText, 10);
  const TempDir dir;
  for (const bool from_files : {false, true}) {
    PageStore store({.directory = dir.path(), .max_bytes = int64_t{1} << 30, .warn = {}});
    PrefixCache prefixes(backend, from_files ? 0 : int64_t{1} << 30, nullptr, &store);
    const int64_t n_exact = 7 * kSegment;
    if (!from_files) {
      Reader reader(*this, policy);
      reader.read(text);
      ASSERT_EQ(reader.plan.reusable(kPrompt), n_exact);
      reader.remember(std::vector(text.begin(), text.begin() + n_exact + 130), prefixes);
      reader.remember(text, kPrompt, prefixes);
      store.flush();
    }
    // Of a prompt that has n_equal tokens in common.
    const auto found = [&](int64_t n_equal) {
      auto prompt = random_tokens(kText + 200, 11);
      std::copy_n(text.begin(), n_equal, prompt.begin());
      if (n_equal < kText) prompt[size_t(n_equal)] = (text[size_t(n_equal)] + 1) % 97;
      Reader reader(*this, policy);
      const PrefixCache::Hit hit = reader.restore(prompt, prefixes);
      EXPECT_EQ(hit.n_loaded, from_files ? hit.n_tokens : 0);
      reader.read(prompt);  // goes on in the middle of a page
      return hit.n_tokens;
    };
    EXPECT_EQ(found(kText), kText / kSegment * kSegment);
    if (!from_files) {  // parts of a page are found in memory alone
      EXPECT_EQ(found(kPrompt + 10), 9 * kSegment);
      EXPECT_EQ(found(kPrompt - 16), 8 * kSegment);  // a template's marks may go
    }
    EXPECT_EQ(found(kPrompt - 17), n_exact);
    EXPECT_EQ(found(n_exact + kSegment), n_exact);
    EXPECT_EQ(found(n_exact + 1), n_exact);
    EXPECT_EQ(found(n_exact - 1), n_exact - kSegment);
  }
}

// A prompt that shares a conversation's beginning, but not its answer, has the page where they part
// read as any prompt reads it. Both go on from all that is known of them afterwards.
TEST_F(PrefixCacheTest, WhatPartsFromAConversationDoesNotHideIt) {
  constexpr int64_t kPrompt = 9 * kSegment + 10, kText = kPrompt + 3 * kSegment;
  PrefillPolicy policy = sparse();
  policy.dense_tail = 100;  // two pages before the last
  const auto text = random_tokens(kText, 20);
  auto other = random_tokens(14 * kSegment, 21);
  std::copy_n(text.begin(), 8 * kSegment + 30, other.begin());
  const TempDir dir;
  for (const bool from_files : {false, true}) {
    PageStore store({.directory = dir.path(), .max_bytes = int64_t{1} << 30, .warn = {}});
    PrefixCache prefixes(backend, from_files ? 0 : int64_t{1} << 30, nullptr, &store);
    if (!from_files) {
      Reader conversation(*this, policy);
      conversation.read(text);
      conversation.remember(std::vector(text.begin(), text.begin() + kPrompt), prefixes);
      conversation.remember(text, kPrompt, prefixes);
      Reader parted(*this, policy);
      ASSERT_EQ(parted.restore(other, prefixes).n_tokens, 7 * kSegment);
      parted.read(other);
      parted.remember(other, prefixes);
      store.flush();
    }
    const auto found = [&](const std::vector<int32_t>& known, int64_t max_loads = INT64_MAX) {
      std::vector<int32_t> prompt = known;
      for (const int32_t token : random_tokens(200, 22)) prompt.push_back(token);
      Reader reader(*this, policy);
      int64_t n = 0;
      for (bool more = true; more;) {
        const PrefixCache::Hit hit = reader.restore(prompt, prefixes, max_loads);
        n = hit.n_tokens;
        more = hit.more;
      }
      return n;
    };
    EXPECT_EQ(found(text), kText / kSegment * kSegment);
    EXPECT_EQ(found(text, 1), kText / kSegment * kSegment);
    EXPECT_EQ(found(other), 12 * kSegment);
    EXPECT_EQ(found({other.begin(), other.begin() + 8 * kSegment + 20}), 8 * kSegment);
  }
}

TEST_F(PrefixCacheTest, DamagedFilesAreMisses) {
  const auto prompt = random_tokens(5 * kSegment + 10, 9);
  const TempDir dir;
  std::vector<std::string> warnings;
  PageStore store({.directory = dir.path(),
                   .max_bytes = int64_t{1} << 30,
                   .warn = [&](const std::string& what) { warnings.push_back(what); }});
  Reader reader(*this, dense());
  const auto want = reader.read(prompt);
  const auto remember = [&] {
    PrefixCache prefixes(backend, 0, nullptr, &store);
    reader.remember(prompt, prefixes);
    store.flush();
  };
  remember();
  // One file after the other takes another's place, loses its end, or goes.
  std::vector<std::filesystem::path> files;
  for (const auto& file : std::filesystem::directory_iterator(dir.path()))
    if (file.path().extension() == ".safetensors") files.push_back(file.path());
  ASSERT_EQ(files.size(), 5u);
  for (size_t i = 0; i < files.size(); ++i) {
    if (i % 3 == 0)
      std::filesystem::copy_file(files[(i + 1) % 5], files[i],
                                 std::filesystem::copy_options::overwrite_existing);
    if (i % 3 == 1) std::filesystem::resize_file(files[i], 1000);
    if (i % 3 == 2) std::filesystem::remove(files[i]);
    const size_t n_said = warnings.size();
    PrefixCache prefixes(backend, 0, nullptr, &store);
    Reader restored(*this, dense());
    EXPECT_LT(restored.restore(prompt, prefixes).n_tokens, 5 * kSegment);
    EXPECT_EQ(warnings.size(), n_said + 1);
    EXPECT_EQ(restored.read(prompt), want);
    remember();  // writes it again
    EXPECT_TRUE(std::filesystem::exists(files[i]));
    EXPECT_EQ(Reader(*this, dense()).restore(prompt, prefixes).n_tokens, 5 * kSegment);
  }
}

// A restore that fails leaves an empty cache, which can be read into or restored again.
TEST_F(PrefixCacheTest, RestoreThatFailsChangesNothing) {
  const auto prompt = random_tokens(6 * kSegment + 20, 7);
  PrefixCache prefixes(backend, int64_t{1} << 30);
  Reader reader(*this, sparse());
  const auto want = reader.read(prompt);
  reader.remember(prompt, prefixes);
  for (const int64_t k : {0, 1, 2}) {
    Reader again(*this, sparse());
    backend.calls_left = k;
    EXPECT_THROW(again.restore(prompt, prefixes), Error);
    backend.calls_left = INT64_MAX;
    EXPECT_EQ(again.cache.n_tokens(), 0);
    EXPECT_EQ(again.cache.bytes(), 0);
    EXPECT_EQ(again.restore(prompt, prefixes).n_tokens, 6 * kSegment);
    EXPECT_EQ(again.read(prompt), want);
  }
}

}  // namespace
}  // namespace ei::test
