#include "apps/cli/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "apps/cli/environment.h"

namespace ei::cli {
namespace {

// A program with one subcommand that has policy options.
struct Parsed {
  explicit Parsed(std::string arguments) {
    program.require_subcommand(1);
    add_environment(program);
    program.parse("run " + arguments);
  }
  CLI::App program{"", "entropyinfer"};
  CLI::App* run = program.add_subcommand("run");
  Device device = Device::kCpu;
  PolicyOptions policy{*run, device};
  Policies get() const { return policy.policies(); }
};

class WithVariable {
 public:
  WithVariable(std::string name, const std::string& value) : name_(std::move(name)) {
    setenv(name_.c_str(), value.c_str(), 1);
  }
  ~WithVariable() { unsetenv(name_.c_str()); }

 private:
  std::string name_;
};

TEST(PolicyOptionsTest, DefaultsAreTheLibrarys) {
  const Parsed parsed("");
  EXPECT_EQ(parsed.get().prefill, default_prefill(Device::kCpu));
  EXPECT_EQ(parsed.get().decode.budget, DecodePolicy{}.budget);
  EXPECT_EQ(parsed.get().decode.kernel, DecodePolicy{}.kernel);
}

TEST(PolicyOptionsTest, AGpuSelectsLaterByEntropyUnlessToldOtherwise) {
  const auto threshold = [](Device device, const std::string& arguments) {
    Parsed parsed(arguments);
    parsed.device = device;
    return parsed.get().prefill.threshold_len;
  };
  EXPECT_EQ(threshold(Device::kCpu, "--prefill entropy"), 1024);
  EXPECT_EQ(threshold(Device::kCuda, "--prefill entropy"), 8192);
  EXPECT_EQ(threshold(Device::kCuda, "--prefill entropy --threshold 512"), 512);
  EXPECT_EQ(threshold(Device::kCuda, "--prefill xattention"), 0);
}

TEST(PolicyOptionsTest, FlagsWinOverThePresetInAnyOrder) {
  for (const char* arguments : {"--preset reference --kernel 7 --rank score",
                                "--kernel 7 --rank score --preset reference"}) {
    const Policies got = Parsed(arguments).get();
    EXPECT_TRUE(got.prefill.budget.max_over_heads);
    EXPECT_EQ(got.prefill.rank, Rank::kScore);
    EXPECT_EQ(got.decode.scope, KvScope::kQueryHead);
    EXPECT_EQ(got.decode.kernel, 7);
  }
}

TEST(PolicyOptionsTest, DenseAndFullTurnTheMethodOff) {
  const Parsed parsed("--prefill dense --decode full --threshold 512 --budget 64");
  EXPECT_TRUE(parsed.get().prefill.is_dense());
  EXPECT_TRUE(parsed.get().decode.is_full());
  EXPECT_EQ(parsed.policy.describe().dump(),
            R"({"prefill":"dense","decode":"full","preset":"default"})");
}

TEST(PolicyOptionsTest, BaselinesStartFromTheirOwnSettings) {
  const Policies got =
      Parsed("--prefill criti --decode adakv --preset reference --floor 0.5").get();
  EXPECT_EQ(got.prefill, PrefillPolicy::criti());
  EXPECT_EQ(got.prefill.block, 32);
  EXPECT_EQ(got.decode.gap, -1);
  EXPECT_EQ(got.decode.kernel, 7);
  EXPECT_EQ(got.decode.split, Split::kAdaptive);
  EXPECT_FLOAT_EQ(got.decode.floor, 0.5);
  for (const auto& [name, split] : std::map<std::string, Split>{{"snapkv", Split::kEven},
                                                                {"pyramidkv", Split::kPyramid},
                                                                {"streaming", Split::kStreaming}}) {
    EXPECT_EQ(Parsed("--decode " + name).get().decode.split, split) << name;
    EXPECT_EQ(Parsed("--decode " + name).get().decode.gap, -1) << name;
  }
  EXPECT_EQ(Parsed("--decode latent-adakv").get().decode.gap, DecodePolicy{}.gap);
}

TEST(PolicyOptionsTest, TheGapMayBeAutomatic) {
  const Parsed parsed("--decode-gap auto");
  EXPECT_EQ(parsed.get().decode.gap, kAutoGap);
  EXPECT_EQ(parsed.policy.describe()["decode_gap"], "auto");
  EXPECT_EQ(Parsed("--decode-gap 3").policy.describe()["decode_gap"], 3);
  EXPECT_THROW(Parsed("--decode-gap soon"), CLI::ParseError);
  EXPECT_THROW(Parsed("--decode-gap auto --decode streaming").get(), CLI::ParseError);
}

// Each setting by its flag, and by its environment variable.
TEST(PolicyOptionsTest, EverySettingIsReachable) {
  const std::map<std::string, std::string> other_values = {{"segment", "1024"},
                                                           {"block", "8"},
                                                           {"base-budget", "512"},
                                                           {"threshold", "8192"},
                                                           {"dense-layers", "2"},
                                                           {"dense-tail", "0"},
                                                           {"e-t", "0.5"},
                                                           {"delta-t", "0.1"},
                                                           {"alpha", "0.25"},
                                                           {"rank", "probability"},
                                                           {"budgets", "max-over-heads"},
                                                           {"estimate", "bounds"},
                                                           {"mass", "0.5"},
                                                           {"enough", "mass"},
                                                           {"share", "0.25"},
                                                           {"stride", "4"},
                                                           {"rigid", "whole-prompt"},
                                                           {"score-scale", "true"},
                                                           {"sink", "2"},
                                                           {"local", "3"},
                                                           {"budget", "512"},
                                                           {"decode-gap", "-1"},
                                                           {"voter", "expected"},
                                                           {"votes", "output"},
                                                           {"window", "16"},
                                                           {"pooling", "avg"},
                                                           {"kernel", "7"},
                                                           {"regrow", "0"},
                                                           {"reduce", "max"},
                                                           {"kv-scope", "query"},
                                                           {"fusion", "0.5"},
                                                           {"split", "adaptive"},
                                                           {"floor", "0.5"},
                                                           {"pyramid-beta", "10"},
                                                           {"off-by-one", "true"}};
  const Parsed plain("");
  const auto described = plain.policy.describe();
  for (const auto& [name, was] : described.items()) {
    if (name == "prefill" || name == "decode" || name == "preset") continue;
    std::string flag = name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    ASSERT_TRUE(other_values.contains(flag)) << flag;
    const std::string& value = other_values.at(flag);

    const Parsed by_flag("--" + flag + (value == "true" ? "" : " " + value));
    const auto now = by_flag.policy.describe()[name];
    EXPECT_NE(now, was) << flag;
    EXPECT_EQ(now.is_string() ? now.get<std::string>() : now.dump(), value) << flag;

    const WithVariable variable(environment_name(flag), value);
    EXPECT_EQ(Parsed("").policy.describe()[name], now) << flag;
  }
}

TEST(PolicyOptionsTest, TheCommandLineWinsOverTheEnvironment) {
  const WithVariable variable("ENTROPYINFER_BUDGET", "300");
  EXPECT_EQ(Parsed("").get().decode.budget, 300);
  EXPECT_EQ(Parsed("--budget 400").get().decode.budget, 400);
}

TEST(PolicyOptionsTest, LengthsAreSpeltAlike) {
  const WithVariable variable("ENTROPYINFER_BASE_BUDGET", "1k");
  EXPECT_EQ(Parsed("").get().prefill.budget.base, 1024);
  const Policies got = Parsed("--base-budget 2k --threshold 3k --budget 4k").get();
  EXPECT_EQ(got.prefill.budget.base, 2048);
  EXPECT_EQ(got.prefill.threshold_len, 3072);
  EXPECT_EQ(got.decode.budget, 4096);
}

TEST(PolicyOptionsTest, WhatIsNoNumberIsSaid) {
  for (const char* arguments : {"--base-budget many", "--mass many", "--budget many"}) {
    try {
      const Parsed parsed(arguments);
      ADD_FAILURE() << arguments;
    } catch (const CLI::ParseError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("number")) << arguments;
      EXPECT_THAT(error.what(), testing::HasSubstr("found many")) << arguments;
    }
  }
}

TEST(PolicyOptionsTest, SettingsThatDoNotFitAreWrongUsage) {
  for (const char* arguments :
       {"--budget 16 --window 32", "--block 7", "--segment 0", "--kernel 4", "--alpha nan"})
    EXPECT_THROW(Parsed(arguments).get(), CLI::ParseError) << arguments;
  for (const char* arguments : {"--pooling median", "--budget many", "--nope"})
    EXPECT_THROW(Parsed{arguments}, CLI::ParseError) << arguments;
}

}  // namespace
}  // namespace ei::cli
