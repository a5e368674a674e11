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
    test::write_file(dir_ / "story.txt", eval::make_document({.n_tokens = 1400}, about).text);
    setenv("XDG_STATE_HOME", dir_.path().c_str(), 1);  // the history
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

constexpr char kTab[] = "\t";

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

TEST_F(TerminalTest, TheFileIsReadOnce) {
  OnTerminal chat({"run", test::kNeedle, "--file", path("story.txt"), "-n", "4"});
  chat.wait_for("> ");
  chat.type("What?\n");
  EXPECT_THAT(chat.wait_for("prompt tokens"), testing::Not(testing::HasSubstr("known")));
  for (const char* next : {"And?\n", "/clear\n", "Again?\n"}) {
    chat.wait_for("> ");
    chat.type(next);
    chat.wait_for(next[0] == '/' ? "the files of --file stay" : " known already)");
  }
}

TEST_F(TerminalTest, AnAnswerIsGivenAgain) {
  OnTerminal chat({"run", test::kNeedle, "-n", "6", "--temp", "1", "--seed", "3"});
  chat.wait_for("> ");
  chat.type("/regen\n");
  chat.wait_for("no answer yet");
  chat.wait_for("> ");
  const auto said = [&](const char* line) {  // and how many tokens were asked
    chat.type(line);
    const std::string got = chat.wait_for("prompt tokens");
    chat.wait_for("> ");
    return got.substr(got.rfind("\033[K") + 3);  // behind the progress of reading
  };
  const std::string first = said("Once\n"), second = said("/regen\n"), third = said("/regen\n");
  EXPECT_NE(first.substr(0, first.rfind('\n')), second.substr(0, second.rfind('\n')));
  EXPECT_NE(second.substr(0, second.rfind('\n')), third.substr(0, third.rfind('\n')));
  // Of one question: what was said before it is no part of it.
  EXPECT_EQ(first.substr(first.rfind('\n')), third.substr(third.rfind('\n')));
}

TEST_F(TerminalTest, APasteIsOneMessage) {
  OnTerminal chat({"run", test::kNeedle, "-n", "2"});
  chat.wait_for("> ");
  chat.type("\033[200~Once\rupon\r\033[201~");
  chat.wait_for("upon");
  chat.type(" a time\n");
  chat.wait_for("prompt tokens");
  chat.type("/help\n");
  EXPECT_THAT(chat.wait_for("forgets"), testing::Not(testing::HasSubstr("prompt tokens")));
  chat.type(kUp + std::string(kUp));
  EXPECT_THAT(chat.wait_for("a time"), testing::HasSubstr("upon"));
}

TEST_F(TerminalTest, KeysTypedWhileItReadsWaitForThePrompt) {
  OnTerminal chat({"run", test::kNeedle, "--file", path("story.txt"), "-n", "1", "--chunk", "512"});
  chat.wait_for("> ");
  chat.type("What?\n");
  chat.wait_for("%");
  chat.type("/nope\n");
  EXPECT_THAT(chat.wait_for("prompt tokens"), testing::Not(testing::HasSubstr("nope")));
  chat.wait_for("/nope is not a command");
}

TEST_F(TerminalTest, LinesAreCompletedAndRemembered) {
  {
    OnTerminal chat({"run", test::kNeedle});
    chat.wait_for("> ");
    chat.type("/raed " + path("fact.txt") + "\n");
    chat.wait_for("/raed is not a command (did you mean /read?)");
    chat.wait_for("> ");
    chat.type("/rea" + std::string(kTab) + path("fa") + kTab);
    chat.wait_for(".txt");
    chat.type("\n");
    chat.wait_for("62 bytes");
    chat.wait_for("> ");
    chat.type("Once \\\n");
    chat.wait_for("... ");
    chat.type(kControlD);  // ends the message, not the program
    chat.wait_for("prompt tokens");
    chat.wait_for("> ");
    chat.type("upon" + std::string(kControlD));
    chat.wait_for("prompt tokens");
    chat.wait_for("> ");
    chat.type(kControlD);
    chat.wait_for("\n");
    EXPECT_EQ(chat.wait_for_exit(), 0);
  }
  OnTerminal chat({"run", test::kNeedle});
  chat.wait_for("> ");
  chat.type(kUp);
  chat.wait_for("upon");
}

TEST_F(TerminalTest, ControlCStopsTheAnswerAndNotTheChat) {
  OnTerminal chat({"run", test::kNeedle, "--file", path("long.txt")});
  chat.wait_for("> ");
  chat.type("What?\n");
  chat.wait_for("tokens/s");  // the bar
  chat.type(kControlC);
  chat.wait_for("[stopped]");
  EXPECT_THAT(chat.wait_for("no answer"), testing::ContainsRegex("[0-9] of [0-9,]+ prompt tokens"));
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
