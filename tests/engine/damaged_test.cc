// Checkpoints whose numbers are wrong: what is said of them, and that nothing is answered.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "ei/engine/engine.h"
#include "ei/io/safetensors.h"
#include "ei/policy/named.h"
#include "tests/support/files.h"

namespace ei {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint16_t kNan = 0x7FC0, kInf = 0x7F80;  // in bf16

// needle-8m with one number of one tensor replaced.
class Damaged {
 public:
  Damaged(const std::string& tensor, uint16_t value, size_t at = 0) {
    std::filesystem::copy(test::kNeedle, dir_.path());
    std::string bytes = read_file(dir_ / "model.safetensors");
    const auto tensors = parse_safetensors(std::as_bytes(std::span(bytes)), "needle-8m");
    const TensorInfo& info = tensors.at(tensor);
    EXPECT_EQ(info.dtype, "BF16");
    const auto begin = reinterpret_cast<const char*>(info.data.data()) - bytes.data();
    std::memcpy(bytes.data() + begin + 2 * at, &value, sizeof value);
    test::write_file(dir_ / "model.safetensors", bytes);
  }

  std::string error_of_answer() const {
    Request request;
    request.max_tokens = 2;
    request.tokens = std::vector<int32_t>(520, 75);  // two segments
    return error_of_answer(request);
  }
  std::string error_of_answer(const Request& request) const {
    Engine engine(dir_.path(), {.device = Device::kCpu, .threads = 1, .chunk = 512});
    return test::error_of([&] { Session(engine).generate(request); });
  }
  std::string error_of_score() const {
    Engine engine(dir_.path(), {.device = Device::kCpu, .threads = 1, .chunk = 512});
    Session session(engine);
    const std::vector<int32_t> tokens(520, 75);
    return test::error_of([&] { session.score(tokens, Request()); });
  }

 private:
  test::TempDir dir_;
};

TEST(DamagedTest, TheFirstLayerThatIsNotFiniteIsNamed) {
  for (const auto& [tensor, value, where] :
       std::vector<std::tuple<std::string, uint16_t, std::string>>{
           {"model.layers.3.self_attn.v_proj.weight", kNan, "layer 3 of 0 to 7"},
           {"model.layers.0.self_attn.q_proj.weight", kNan, "layer 0 of 0 to 7"},
           {"model.layers.2.self_attn.k_proj.weight", kInf, "layer 2 of 0 to 7"},
           {"model.layers.0.mlp.down_proj.weight", kInf, "layer 0 of 0 to 7"},
           {"model.layers.7.mlp.up_proj.weight", kNan, "layer 7 of 0 to 7"},
           {"model.norm.weight", kInf, "the final norm or the output matrix"}}) {
    const Damaged model(tensor, value);
    EXPECT_THAT(model.error_of_answer(), HasSubstr("first in " + where)) << tensor;
    EXPECT_THAT(model.error_of_score(),
                HasSubstr(tensor == "model.norm.weight" ? "NaN or infinity" : "first in " + where))
        << tensor;
  }
}

// Of a token that the prompt does not have: its logit alone is not finite, the head being tied.
TEST(DamagedTest, OneLogitIsEnough) {
  const Damaged model("model.embed_tokens.weight", kNan, /*at=*/256 * 3000);
  EXPECT_THAT(model.error_of_answer(), HasSubstr("the output matrix"));
}

// Whatever blocks and entries are chosen by, scores that are no numbers end in the same error, not
// in a choice beyond what there is, or none that ends: of one token in 600, and of a whole layer.
TEST(DamagedTest, NothingIsChosenByWhatIsNoNumber) {
  std::vector<Request> requests;
  for (const auto& [name, policy] : prefill_policies()) {
    Request& request = requests.emplace_back();
    request.prefill = policy;
    request.prefill.threshold_len = request.prefill.dense_layers = request.prefill.dense_tail = 0;
    request.prefill.budget.base = 128;
    request.prefill.sink = request.prefill.local = 0;
    request.prefill.segment = std::min<int64_t>(policy.segment, 256);
  }
  for (const auto& [name, policy] : decode_policies()) {
    Request& request = requests.emplace_back();
    request.decode = policy;
    request.decode.budget = 64;
    request.decode.gap = -1;
  }
  for (const auto& [tensor, at] :
       std::vector<std::pair<std::string, size_t>>{{"model.embed_tokens.weight", 256 * 3000},
                                                   {"model.layers.1.self_attn.k_proj.weight", 7}})
    for (const uint16_t value : {kNan, kInf}) {
      const Damaged model(tensor, value, at);
      for (Request& request : requests) {
        request.max_tokens = 2;
        for (int32_t i = 0; i < 600; ++i) request.tokens.push_back(i == 300 ? 3000 : 10 + i % 500);
        EXPECT_THAT(model.error_of_answer(request), HasSubstr("first in layer"))
            << tensor << " " << name_of(request.prefill) << "+" << name_of(request.decode);
        request.tokens.clear();
      }
    }
}

TEST(DamagedTest, EndsOutsideTheVocabularyAreIgnoredAndSaid) {
  const test::TempDir dir;
  std::filesystem::copy(test::kNeedle, dir.path());
  test::write_file(dir / "generation_config.json", R"({"eos_token_id": [-1, 3, 4096]})");
  const Engine engine(dir.path(), {.device = Device::kCpu, .threads = 1});
  EXPECT_THAT(engine.info().warnings,
              ElementsAre(HasSubstr("eos_token_id -1 is ignored"),
                          HasSubstr("eos_token_id 4096 is ignored: the vocabulary has 4096")));
  EXPECT_THAT(Engine(test::kNeedle, {.device = Device::kCpu, .threads = 1}).info().warnings,
              testing::IsEmpty());
}

}  // namespace
}  // namespace ei
