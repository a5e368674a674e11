#include "apps/eval/policies.h"

#include <gtest/gtest.h>

namespace ei::eval {
namespace {

class PoliciesTest : public testing::Test {
 protected:
  NamedPolicies parse(const std::string& text, const std::string& flags = "") {
    CLI::App program;
    const Device device = Device::kCpu;
    const cli::PolicyOptions options(program, device, /*with_names=*/false);
    program.parse(flags);
    return parse_policies(text, options);
  }
};

TEST_F(PoliciesTest, NamesAndBudgets) {
  const NamedPolicies both = parse("paper@512+snapkv@256", "--window 16 --budget 99");
  EXPECT_EQ(both.name, "paper@512+snapkv@256");
  EXPECT_EQ(both.policies.prefill.budget.base, 512);
  EXPECT_EQ(both.policies.decode.budget, 256);
  EXPECT_EQ(both.policies.decode.window, 16);
  EXPECT_EQ(both.policies.decode.gap, -1);
  EXPECT_EQ(parse("criti+latent", "--budget 99").policies.decode.budget, 99);
  EXPECT_TRUE(parse("dense+full").policies.prefill.is_dense());
  EXPECT_TRUE(parse("dense+full").policies.decode.is_full());
}

TEST_F(PoliciesTest, RefusesWhatIsNotOne) {
  for (const char* text : {"dense", "dense+", "+full", "some+full", "dense+some", "dense+snapkv@",
                           "dense+snapkv@-1", "dense+snapkv@2x", "dense+full@256", "dense@8+full",
                           "dense+snapkv@16", "paper@4+full", "entropy@64+full", ""})
    EXPECT_THROW(parse(text), CLI::ValidationError) << text;
}

TEST_F(PoliciesTest, SettingsOfItsOwn) {
  const NamedPolicies own = parse("paper@512+latent@256:kernel=7:decode-gap=auto:sink=2:off-by-one",
                                  "--kernel 9 --window 16 --local 3");
  EXPECT_EQ(own.policies.decode.kernel, 7);
  EXPECT_EQ(own.policies.decode.gap, kAutoGap);
  EXPECT_EQ(own.policies.decode.budget, 256);
  EXPECT_EQ(own.policies.decode.window, 16);
  EXPECT_TRUE(own.policies.decode.off_by_one);
  EXPECT_EQ(own.policies.prefill.budget.base, 512);
  EXPECT_EQ(own.policies.prefill.sink, 2);
  EXPECT_EQ(own.policies.prefill.local, 3);
  for (const char* text : {"dense+latent:kernel", "dense+latent:kernel=x", "dense+latent:kernel=4",
                           "dense+latent:nope=3", "dense+latent:prefill=dense", ":kernel=7"})
    EXPECT_THROW(parse(text), CLI::ValidationError) << text;
}

TEST_F(PoliciesTest, NamesAreInTheListAlone) {
  EXPECT_THROW(parse("dense+full", "--prefill dense"), CLI::ParseError);
  EXPECT_THROW(parse("dense+full", "--decode full"), CLI::ParseError);
}

}  // namespace
}  // namespace ei::eval
