#include "apps/cli/chat.h"

#include <fmt/format.h>

#include <cstdio>

#include "apps/cli/input.h"
#include "apps/cli/line_editor.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/units.h"

namespace ei::cli {
namespace {

constexpr const char* kHelp =
    "/read FILE  puts a file before your next question\n"
    "/clear      forgets the conversation\n"
    "/exit       ends the program, as does Ctrl-D\n"
    "Ctrl-C stops an answer. A line that ends in a backslash goes on in the next.\n";

class Chat {
 public:
  Chat(Engine& engine, const Request& base, std::vector<std::string> documents,
       Interrupts& interrupts)
      : base_(base),
        request_(base),
        documents_(std::move(documents)),
        session_(engine),
        interrupts_(interrupts) {}

  void loop() {
    fmt::print(stderr, "{}", kHelp);
    LineEditor editor("> ");
    for (std::optional<std::string> line; (line = editor.read()) && *line != "/exit";) {
      try {
        handle(*line);
      } catch (const Error& error) {
        fmt::print(stderr, "{}\n", error.what());
      }
    }
  }

 private:
  void handle(const std::string& line) {
    if (line.starts_with("/read ")) {
      documents_.push_back(read_text(line.substr(6)));
      fmt::print(stderr, "{}, read before your next question\n",
                 human_bytes(static_cast<int64_t>(documents_.back().size())));
    } else if (line == "/clear") {
      request_.messages = base_.messages;
      documents_.clear();
      session_.clear();
    } else if (line.starts_with('/')) {
      fmt::print(stderr, "{}", kHelp);
    } else if (line.find_first_not_of(" \t\n") != std::string::npos) {
      ask(line);
    }
  }

  void ask(const std::string& question) {
    // The conversation grows only when the engine took the question.
    Request request = request_;
    Message message{"user", documents_};
    message.parts.push_back(question);
    request.messages.push_back(std::move(message));

    ProgressBar progress("reading");
    const Interrupts::Scope scope(interrupts_);
    const Generation answer = session_.generate(request, watch(progress, print), scope.token());
    progress.clear();
    print("\n");
    fmt::print(stderr, "{}{}\n", scope.interrupted() ? "[stopped] " : "", stats_line(answer));
    request.messages.push_back({"assistant", {answer.text}});
    request_ = std::move(request);
    documents_.clear();
  }

  const Request& base_;
  Request request_;
  std::vector<std::string> documents_;
  Session session_;
  Interrupts& interrupts_;
};

}  // namespace

void chat(Engine& engine, const Request& base, std::vector<std::string> documents,
          Interrupts& interrupts) {
  Chat(engine, base, std::move(documents), interrupts).loop();
}

}  // namespace ei::cli
