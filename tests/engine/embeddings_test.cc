#include <gtest/gtest.h>

#include <cmath>
#include <future>

#include "apps/eval/document.h"
#include "ei/base/half.h"
#include "ei/engine/scheduler.h"
#include "ei/io/safetensors.h"
#include "tests/support/files.h"

namespace ei {
namespace {

// The head times the hidden states are the logits, and its product with their mean the logits'
// mean. Where activations are rounded to bf16 for a product, a logit is off by at most 2^-8 of the
// lengths of what is multiplied.
TEST(Embeddings, AreWhatTheHeadReads) {
  using enum SequenceOptions::Pooling;
  Engine engine(test::kNeedle, {.device = Device::kCpu, .threads = 1, .page = 128, .chunk = 512});
  Request r;
  r.tokens = engine.tokenize(
      eval::make_document({.n_tokens = 1100, .n_needles = 2}, [&](std::string_view text) {
        return std::ssize(engine.tokenize(text));
      }).text);
  r.prefill.segment = r.prefill.threshold_len = 128;
  r.prefill.budget.base = 64;
  r.decode = DecodePolicy::full();
  r.max_tokens = 0;
  SchedulerOptions options;
  options.prefill = r.prefill;
  options.kv_bytes = 1 << 30;
  options.prefix_bytes = 1 << 28;
  Scheduler scheduler(engine, options);
  const auto read = [&](SequenceOptions sequence_options) {
    const auto ended = std::make_shared<std::promise<Outcome>>();
    Job job;
    job.request = r;
    job.options = std::move(sequence_options);
    job.on_end = [=](Outcome outcome) { ended->set_value(std::move(outcome)); };
    scheduler.submit(std::move(job));
    return ended->get_future().get().generation;
  };
  const auto n = std::ssize(r.tokens);
  std::vector<double> sum, last;
  const auto add = [&](const Act& logits, int64_t position) {
    const auto* rows = static_cast<const float*>(logits.data);
    for (int64_t i = 0; i < logits.rows; ++i) {
      const float* row = rows + i * logits.cols;
      if (position + i == n - 1) last.assign(row, row + logits.cols);
      sum.resize(static_cast<size_t>(logits.cols));
      for (size_t v = 0; v < sum.size(); ++v) sum[v] += double(row[v]);
    }
  };
  read({.on_logits = add});
  ASSERT_FALSE(last.empty());
  const auto hidden = [&](SequenceOptions::Pooling pooling, bool reuse = true) {
    return read({.reuse = reuse, .pooling = pooling});
  };
  const std::vector<float> of_mean = hidden(kMean).hidden, of_last = hidden(kLast).hidden;

  const SafetensorsFile file(std::filesystem::path(test::kNeedle) / "model.safetensors");
  const auto& head = file.tensors().contains("lm_head.weight")
                         ? file.tensors().at("lm_head.weight")
                         : file.tensors().at("model.embed_tokens.weight");
  ASSERT_EQ(head.dtype, "BF16");
  const auto* weights = reinterpret_cast<const uint16_t*>(head.data.data());
  const size_t width = of_mean.size();
  ASSERT_EQ(of_last.size(), width);
  ASSERT_EQ(head.shape, (std::vector<int64_t>{std::ssize(sum), std::ssize(of_mean)}));
  for (size_t v = 0; v < sum.size(); ++v) {
    double mean = 0, at_last = 0, squares = 0, most = 0;
    for (size_t i = 0; i < width; ++i) {
      const double w = from_bf16(weights[v * width + i]);
      mean += w * of_mean[i];
      at_last += w * of_last[i];
      squares += w * w;
      most += of_last[i] * of_last[i];
    }
    const double tolerance = std::sqrt(squares * most) / 256;
    ASSERT_NEAR(at_last, last[v], tolerance) << v;
    ASSERT_NEAR(mean, sum[v] / double(n), tolerance) << v;
  }
  EXPECT_EQ(hidden(kNone).hidden, std::vector<float>());
  // Of the last token alone what is known of the prompt need not be read.
  const Generation again = hidden(kLast);
  EXPECT_GT(again.cached_tokens, 0);
  EXPECT_EQ(again.hidden, of_last);
  EXPECT_EQ(hidden(kLast, /*reuse=*/false).hidden, of_last);
  EXPECT_EQ(hidden(kMean).cached_tokens, 0);
}

}  // namespace
}  // namespace ei
