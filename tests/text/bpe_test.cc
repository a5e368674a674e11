#include "ei/text/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace ei::test {
namespace {

using Ids = std::vector<int32_t>;

struct Rule {
  int32_t rank, merged;
};
using Rules = std::map<std::pair<int32_t, int32_t>, Rule>;

// As the definition says: look through all neighbours, merge the first of the best, start again.
Ids merged(const Rules& rules, Ids ids) {
  while (true) {
    size_t best = ids.size();
    const Rule* rule = nullptr;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = rules.find({ids[i], ids[i + 1]});
      if (it == rules.end() || (rule && it->second.rank >= rule->rank)) continue;
      best = i;
      rule = &it->second;
    }
    if (!rule) return ids;
    ids[best] = rule->merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, MergesAsDefined) {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    // Few symbols, so that rules overlap; ranks that are all different (Hugging Face) or equal for
    // equal results (SentencePiece).
    const bool tied = round % 2;
    Rules rules;
    BpeMerges merges;
    for (int32_t i = 0; i < 60; ++i) {
      const auto left = static_cast<int32_t>(random() % 12),
                 right = static_cast<int32_t>(random() % 12);
      const int32_t result = 3 + static_cast<int32_t>(random() % 9);
      const int32_t rank = tied ? 20 - result : i;
      rules[{left, right}] = {rank, result};
      merges.add(left, right, rank, result);
    }
    // 48 symbols are merged by plain scans, 49 with a heap.
    for (const size_t n : {0u, 1u, 2u, 3u, 7u, 47u, 48u, 49u, 50u, 333u}) {
      Ids ids(n);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % 4);
      const Ids want = merged(rules, ids);
      merges.apply(ids);
      EXPECT_EQ(ids, want) << n << " symbols, round " << round;
    }
  }
}

TEST(Bpe, WithoutRulesNothingIsMerged) {
  Ids ids{1, 2, 3};
  BpeMerges().apply(ids);
  EXPECT_EQ(ids, (Ids{1, 2, 3}));
}

TEST(Bpe, ManyRules) {
  BpeMerges merges;
  for (int32_t i = 0; i < 100'000; ++i) merges.add(i, i + 1, i, 200'000 + i);
  for (int32_t i = 0; i < 100'000; i += 997) {
    Ids ids{i, i + 1};
    merges.apply(ids);
    EXPECT_EQ(ids, Ids{200'000 + i});
  }
}

TEST(WordCache, GivesTheSameIdsAgain) {
  WordCache cache;
  Ids ids;
  int n_encoded = 0;
  const auto encode = [&](std::string_view word, Ids& out) {
    ++n_encoded;
    for (const char c : word) out.push_back(c);
  };
  const std::string long_word(100, 'x');
  for (int i = 0; i < 3; ++i)
    for (const std::string_view word :
         {std::string_view("ab"), std::string_view(""), std::string_view(long_word)})
      cache.append(word, ids, encode);
  Ids once{'a', 'b'};
  once.insert(once.end(), 100, 'x');
  Ids want;
  for (int i = 0; i < 3; ++i) want.insert(want.end(), once.begin(), once.end());
  EXPECT_EQ(ids, want);
  EXPECT_EQ(n_encoded, 1 + 1 + 3);  // long words are not kept
}

}  // namespace
}  // namespace ei::test
