#include "apps/eval/document.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/eval/words.h"

namespace ei::eval {
namespace {

TEST(DocumentTest, TheSeedDecides) {
  const DocumentSpec spec{.n_tokens = 2000, .n_needles = 4, .seed = 7};
  EXPECT_EQ(make_document(spec, count_words).text, make_document(spec, count_words).text);
  EXPECT_NE(make_document(spec, count_words).text,
            make_document({.n_tokens = 2000, .n_needles = 4, .seed = 8}, count_words).text);
}

TEST(DocumentTest, EveryNeedleIsThereOnceAndInItsStretch) {
  for (const int64_t n_needles : {0, 1, 8, 50}) {
    const Document got =
        make_document({.n_tokens = 5000, .n_needles = n_needles, .seed = 3}, count_words);
    ASSERT_EQ(got.needles.size(), size_t(n_needles));
    std::set<std::string> keys, values;
    for (size_t i = 0; i < got.needles.size(); ++i) {
      const Needle& needle = got.needles[i];
      EXPECT_EQ(occurrences(got.text, needle.fact()), 1u);
      EXPECT_EQ(occurrences(got.text, needle.value), 1u);
      EXPECT_EQ(needle.value.size(), 7u);
      keys.insert(needle.key);
      values.insert(needle.value);
      const double depth = double(got.text.find(needle.fact())) / double(got.text.size());
      // Stretches are cut in tokens: allow the sentences that differ from the average.
      EXPECT_NEAR(depth, (double(i) + 0.5) / double(n_needles), 0.5 / double(n_needles) + 0.02);
    }
    EXPECT_EQ(keys.size(), size_t(n_needles));
    EXPECT_EQ(values.size(), size_t(n_needles));
  }
}

TEST(DocumentTest, HasTheTokensThatWereAskedFor) {
  for (const int64_t n_tokens : {1, 100, 5000}) {
    const Document got =
        make_document({.n_tokens = n_tokens, .n_needles = 0, .seed = 1}, count_words);
    // Each sentence but the first is counted with the blank before it, as one word more.
    const int64_t n_sentences = std::count(got.text.begin(), got.text.end(), '.');
    EXPECT_GE(count_words(got.text) + n_sentences, n_tokens);
    EXPECT_LT(count_words(got.text), n_tokens + 40);
    EXPECT_EQ(got.text.find('$'), std::string::npos);
  }
}

TEST(DocumentTest, SentencesRarelyRepeat) {
  const Document got = make_document({.n_tokens = 20000, .n_needles = 0, .seed = 1}, count_words);
  std::multiset<std::string> sentences;
  for (size_t begin = 0; begin < got.text.size();) {
    const size_t end = std::min(got.text.find(". ", begin), got.text.size());
    sentences.insert(got.text.substr(begin, end - begin));
    begin = end + 2;
  }
  const std::set<std::string> different(sentences.begin(), sentences.end());
  EXPECT_GT(double(different.size()), 0.99 * double(sentences.size()));
}

}  // namespace
}  // namespace ei::eval
