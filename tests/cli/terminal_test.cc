// The program on a terminal: the chat, Ctrl-C, the progress bar.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "apps/eval/document.h"
#include "tests/cli/program.h"
#include "tests/support/files.h"

namespace ei::cli {
namespace {

const std::string kQuestion =
    "What is the special magic number for quiet-harbor mentioned in the provided text?";
constexpr char kControlC[] = "\x03";
constexpr char kControlD[] = "\x04";
constexpr char kUp[] = "\033[A";

class TerminalTest : public testing::Test {
 protected:
  TerminalTest() {
    test::write_file(dir_ / "fact.txt",
                     "One of the special magic numbers for quiet-harbor is: 4821097.");
    const auto about = [](std::string_view text) { return int64_t(text.size() / 4); };
    test::write_file(dir_ / "long.txt", eval::make_document({.n_tokens = 60000}, about).text);
  }
  // In a bare container /dev/pts may be missing; where everything is tested it may not.
  void SetUp() override {
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    if (terminal >= 0) {
      close(terminal);
    } else if (const char* ci = std::getenv("CI");
               ci == nullptr || std::string_view(ci) != "true") {
      GTEST_SKIP() << "no pseudo terminals: is devpts mounted on /dev/pts?";
    }
  }
  std::string path(const char* name) const { return (dir_ / name).string(); }

  test::TempDir dir_;
};

TEST_F(TerminalTest, ChatReadsFilesAnswersAndForgets) {
  OnTerminal chat({"run", test::kNeedle});
  chat.wait_for("> ");
  chat.type("/read " + path("fact.txt") + "\n");
  chat.wait_for("62 bytes");
  chat.wait_for("> ");
  chat.type(kQuestion + "\n");
  chat.wait_for("4821097");
  chat.wait_for("prompt tokens");
  chat.wait_for("> ");
  chat.type(kUp);  // history
  chat.wait_for("provided text?");
  chat.type(kControlC);  // empties the line
  chat.type("/read /nowhere\n");
  chat.wait_for("/nowhere:");
  chat.wait_for("> ");
  chat.type("/clear\n");
  chat.wait_for("> ");
  chat.type("Once\n");
  // BOS, one user block, the answer's start: nothing of before.
  EXPECT_THAT(chat.wait_for("prompt tokens"), testing::ContainsRegex("\n[0-9] prompt tokens"));
  chat.wait_for("> ");
  chat.type("/exit\n");
  EXPECT_EQ(chat.wait_for_exit(), 0);
}

TEST_F(TerminalTest, ControlCStopsTheAnswerAndNotTheChat) {
  OnTerminal chat({"run", test::kNeedle, "--file", path("long.txt")});
  chat.wait_for("> ");
  chat.type("What?\n");
  chat.wait_for("tokens/s");  // the bar
  chat.type(kControlC);
  chat.wait_for("[stopped]");
  chat.wait_for("> ");
  chat.type(kControlD);
  EXPECT_EQ(chat.wait_for_exit(), 0);
}

TEST_F(TerminalTest, ControlCEndsASingleAnswerWith130) {
  OnTerminal run({"run", test::kNeedle, "--file", path("long.txt"), "--prompt", "What?"});
  EXPECT_THAT(run.wait_for("left"), testing::HasSubstr("reading"));
  run.type(kControlC);
  run.wait_for("prompt tokens");  // the stats line all the same
  EXPECT_EQ(run.wait_for_exit(), 130);
}

}  // namespace
}  // namespace ei::cli
