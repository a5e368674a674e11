#include "apps/cli/chat.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <system_error>

#include "apps/cli/input.h"
#include "apps/cli/line_editor.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/cli/saved_session.h"
#include "apps/cli/suggest.h"
#include "apps/cli/terminal.h"
#include "apps/cli/units.h"

namespace ei::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHelp =
    "/regen      answers the last question again, by other random numbers\n"
    "/read FILE  puts a file before your next question\n"
    "/save FILE  saves the conversation and what was read of it\n"
    "/load FILE  goes on with one that was saved\n"
    "/clear      forgets the conversation, but not the files of --file\n"
    "/help       shows this\n"
    "/exit       ends the program, as does Ctrl-D on an empty line\n"
    "Ctrl-C stops an answer. A line that ends in a backslash goes on in the next.\n";
const std::vector<std::string> kCommands = {"/regen", "/read", "/save", "/load",
                                            "/clear", "/help", "/exit"};

fs::path home() {
  const char* home = std::getenv("HOME");
  return home ? home : "";
}

fs::path history_file() {
  const char* state = std::getenv("XDG_STATE_HOME");
  return (state && *state ? fs::path(state) : home() / ".local/state") / "entropyinfer/history";
}

// A path as people type it.
fs::path typed_path(std::string_view text) {
  return text.starts_with("~/") ? home() / text.substr(2) : fs::path(text);
}

bool takes_file(std::string_view command) {
  return command == "/read" || command == "/save" || command == "/load";
}

// Of a command or, after one that takes a file, of that: the lines it can become.
std::vector<std::string> completions(std::string_view line) {
  constexpr size_t kFileAt = 6;  // in "/read FILE"
  std::vector<std::string> lines;
  if (line.size() < kFileAt || line[kFileAt - 1] != ' ' ||
      !takes_file(line.substr(0, kFileAt - 1))) {
    for (const std::string& command : kCommands)
      if (command.starts_with(line)) lines.push_back(command + (takes_file(command) ? " " : ""));
    return lines;
  }
  const size_t name_at = std::max(line.rfind('/') + 1, kFileAt);  // the first '/' is the command's
  const fs::path folder = typed_path(line.substr(kFileAt, name_at - kFileAt));
  std::error_code error;
  for (fs::directory_iterator it(folder.empty() ? "." : folder, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code unknown;
    if (name.starts_with(line.substr(name_at)))
      lines.push_back(std::string(line.substr(0, name_at)) + name +
                      (it->is_directory(unknown) ? "/" : ""));
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

class Chat {
 public:
  Chat(Engine& engine, const Request& base, std::vector<std::string> documents,
       const fs::path& saved, Interrupts& interrupts)
      : base_(base),
        base_documents_(std::move(documents)),
        max_bytes_(engine.info().max_text_bytes),
        request_(base),
        documents_(base_documents_),
        saved_(saved),
        session_(engine, kept_bytes(engine)),
        interrupts_(interrupts) {
    if (!saved_.empty() && fs::exists(saved_)) load(saved_);
  }

  void loop() {
    fmt::print(stderr, "{}", kHelp);
    LineEditor editor("> ", completions, history_file());
    for (std::optional<std::string> line; (line = editor.read()) && *line != "/exit";) {
      const KeysHidden hidden;
      try {
        handle(*line);
      } catch (const Error& error) {
        fmt::print(stderr, "{}\n", error.what());
      }
    }
    if (!saved_.empty()) save(saved_);
  }

 private:
  void handle(const std::string& line) {
    const std::string command = line.substr(0, line.find_first_of(" \n"));
    if (takes_file(command)) {
      const std::string file = line.substr(std::min(line.size(), command.size() + 1));
      if (file.empty()) return fmt::print(stderr, "{} FILE: which file?\n", command);
      command == "/read"   ? read(file)
      : command == "/save" ? save(typed_path(file))
                           : load(typed_path(file));
    } else if (line == "/regen") {
      regenerate();
    } else if (line == "/clear") {
      request_.messages = base_.messages;
      documents_ = base_documents_;
      if (documents_.empty()) session_.clear();
      fmt::print(stderr, "forgotten{}\n",
                 documents_.empty() ? "" : "; the files of --file stay before your next question");
    } else if (line == "/help") {
      fmt::print(stderr, "{}", kHelp);
    } else if (line.starts_with('/')) {
      const std::string meant = nearest(command, kCommands);
      fmt::print(stderr,
                 "{} is not a command{}; /help lists them. Type a space before a question that "
                 "begins with /.\n",
                 command, meant.empty() ? "" : fmt::format(" (did you mean {}?)", meant));
    } else if (const size_t begin = line.find_first_not_of(" \t\n"); begin != line.npos) {
      ask(line.substr(begin));
    }
  }

  void read(const std::string& file) {
    documents_.push_back(read_text(typed_path(file), max_bytes_));
    fmt::print(stderr, "{}, read before your next question\n",
               human_bytes(static_cast<int64_t>(documents_.back().size())));
  }

  void save(const fs::path& file) {
    save_session(session_, file, request_);
    fmt::print(stderr, "saved in {}\n", file.string());
  }

  void load(const fs::path& file) {
    load_session(session_, file, request_);
    documents_.clear();
    fmt::print(stderr, "{} messages of {}\n", request_.messages.size(), file.string());
  }

  void ask(const std::string& question) {
    // The conversation grows only with an answer.
    Request request = request_;
    Message message{"user", documents_};
    message.parts.push_back(question);
    request.messages.push_back(std::move(message));
    if (answer(std::move(request))) documents_.clear();
  }

  void regenerate() {
    Request request = request_;
    if (request.messages.empty() || request.messages.back().role != "assistant")
      return fmt::print(stderr, "there is no answer yet\n");
    request.messages.pop_back();
    if (request.sampling) ++request.sampling->seed;
    answer(std::move(request));
  }

  // Whether there is an answer; without one the conversation is as it was.
  bool answer(Request request) {
    ProgressBar progress("reading");
    const Interrupts::Scope scope(interrupts_);
    const Generation answer = session_.generate(request, watch(progress, print), scope.token());
    progress.clear();
    if (!answer.tokens.empty()) print("\n");
    fmt::print(stderr, "{}{}\n", scope.interrupted() ? "[stopped] " : "", stats_line(answer));
    if (answer.tokens.empty()) return false;
    request.messages.push_back({"assistant", {answer.text}});
    request_ = std::move(request);
    return true;
  }

  const Request& base_;
  const std::vector<std::string> base_documents_;
  int64_t max_bytes_;
  Request request_;
  std::vector<std::string> documents_;
  const fs::path saved_;
  Session session_;
  Interrupts& interrupts_;
};

}  // namespace

void chat(Engine& engine, const Request& base, std::vector<std::string> documents,
          const fs::path& saved, Interrupts& interrupts) {
  Chat(engine, base, std::move(documents), saved, interrupts).loop();
}

int64_t kept_bytes(const Engine& engine) { return engine.info().available_bytes / 10 * 9; }

}  // namespace ei::cli
