#include "apps/eval/multi_turn.h"

#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace ei::eval {
namespace {

TEST(MultiTurnTest, TurnsPointAtTheirAnswers) {
  const Engine engine(test::kNeedle, {.threads = 1});
  const Document document =
      make_document({.n_tokens = 1000, .n_needles = 3, .seed = 4},
                    [&](std::string_view text) { return std::ssize(engine.tokenize(text)); });
  const Conversation talk = make_conversation(engine, document);
  const auto text = [&](int64_t begin, int64_t end) {
    return engine.detokenize(std::span(talk.tokens).subspan(size_t(begin), size_t(end - begin)));
  };
  ASSERT_EQ(talk.turns.size(), 3u);
  int64_t last = 0;
  for (size_t i = 0; i < 3; ++i) {
    const Conversation::Turn& turn = talk.turns[i];
    const Needle& needle = document.needles[i];
    EXPECT_EQ(text(turn.begin, turn.end).substr(text(turn.begin, turn.end).find(needle.value[0])),
              needle.value);
    EXPECT_TRUE(text(last, turn.n_prompt).ends_with(needle.question() + "<|assistant|>"));
    EXPECT_NE(text(turn.n_prompt, turn.begin).find(needle.key), std::string::npos);
    EXPECT_EQ(text(turn.n_prompt, turn.begin).find(needle.value), std::string::npos);
    last = turn.end;
  }
}

}  // namespace
}  // namespace ei::eval
