#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "apps/cli/chat.h"
#include "apps/cli/command.h"
#include "apps/cli/input.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/limits.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/ranks.h"
#include "apps/cli/report.h"
#include "apps/cli/saved_session.h"
#include "apps/cli/terminal.h"
#include "ei/base/utf8.h"

namespace ei::cli {
namespace {

// What is asked.
class PromptOptions {
 public:
  explicit PromptOptions(CLI::App& command) {
    const char* group = "Prompt";
    command.add_option("--file", files_, "A document; may be given again; -: standard input")
        ->option_text("F|- ...")
        ->expected(1)
        ->take_all()
        ->group(group);
    command
        .add_option("--prompt", prompt_, "What is asked, after the documents; -: standard input")
        ->option_text("T|-")
        ->group(group);
    command.add_option("--system", system_, "System message")->option_text("T")->group(group);
    command
        .add_option("--session", session_,
                    "A conversation to go on with, which is saved there at the end")
        ->option_text("F")
        ->group(group);
    command.add_flag("--raw", raw_, "Give the model the text as it is, in no chat template")
        ->group(group);
    command.add_flag("--no-thinking", no_thinking_, "For models that can answer with or without")
        ->group(group);
  }

  // Without a prompt, on a terminal.
  const std::filesystem::path& session() const { return session_; }
  bool interactive() const { return !prompt_ && !raw_ && !has_ranks() && stdin_is_terminal(); }

  // Before a model is loaded for nothing.
  void check() const {
    const bool as_prompt = prompt_ == "-";
    if (std::ranges::count(files_, "-") + as_prompt > 1)
      throw CLI::ValidationError("standard input (-) can be read once only");
    for (const std::string& file : files_) check_readable(file);
    if (prompt_) require_utf8(*prompt_, "--prompt");
    if (raw_ && !session_.empty())
      throw CLI::ValidationError("--session keeps messages, of which --raw has none");
    if (has_ranks() && !session_.empty())
      throw CLI::ValidationError("--session keeps one rank's cache; here several have parts of it");
  }

  std::vector<std::string> documents(int64_t max_bytes) const {
    std::vector<std::string> texts;
    for (const std::string& file : files_) texts.push_back(read_text(file, max_bytes));
    return texts;
  }

  // The documents, then the question. What comes through a pipe is the question if there is no
  // other, else a document.
  std::vector<std::string> parts(int64_t max_bytes) const {
    std::vector<std::string> parts = documents(max_bytes);
    const bool taken = std::ranges::count(files_, "-") > 0;
    if (!taken && (!prompt_ || prompt_ == "-" || !stdin_is_terminal()))
      parts.push_back(read_stdin(max_bytes));
    if (prompt_ && prompt_ != "-") parts.push_back(*prompt_);
    std::erase(parts, "");
    if (parts.empty())
      throw CLI::ValidationError("the prompt is empty; give --prompt, --file or standard input");
    return parts;
  }

  // Puts `parts` into the request as the flags say.
  void fill(Request& request, const Engine& engine, std::vector<std::string> parts) const {
    if (raw_) {
      std::string text;
      for (const std::string& part : parts) text += (text.empty() ? "" : "\n\n") + part;
      request.tokens = engine.tokenize(text);
    } else {
      request.messages.push_back({"user", std::move(parts)});
    }
  }

  // What holds for a whole conversation.
  void start(Request& request) const {
    request.thinking = !no_thinking_;
    if (system_ && !raw_) request.messages.push_back({"system", {*system_}});
  }

 private:
  std::vector<std::string> files_;
  std::optional<std::string> prompt_, system_;
  std::filesystem::path session_;
  bool raw_ = false, no_thinking_ = false;
};

// How the answer ends and is shown.
class AnswerOptions {
 public:
  explicit AnswerOptions(CLI::App& command) {
    const char* group = "Answer";
    command.add_option("-n,--max-tokens", max_tokens_, "Longest answer in tokens")
        ->transform(count(1, int64_t{1} << 30))
        ->option_text(fmt::format("N [{}]", max_tokens_))
        ->group(group);
    command.add_option("--stop", stop_, "Ends the answer where this appears; may be given again")
        ->option_text("T ...")
        ->expected(1)
        ->take_all()
        ->group(group);
    command.add_flag("--ignore-eos", ignore_eos_, "Go on after the model's end of answer")
        ->group(group);
    command.add_flag("--json", json_, "One JSON object with the answer and all measurements")
        ->group(group);
  }

  void start(Request& request) const {
    request.max_tokens = max_tokens_;
    request.stop = stop_;
    request.ignore_eos = ignore_eos_;
  }
  bool json() const { return json_; }

 private:
  int64_t max_tokens_ = 512;
  std::vector<std::string> stop_;
  bool ignore_eos_ = false, json_ = false;
};

class Run {
 public:
  Run(CLI::App& command, Interrupts& interrupts)
      : interrupts_(interrupts),
        prompt_(command),
        answer_(command),
        model_(command),
        sampling_(command),
        policy_(command, model_.device()) {}

  int operator()() {
    const Policies policies = policy_.policies();
    const bool interactive = prompt_.interactive() && !answer_.json();
    prompt_.check();

    Engine engine = model_.load();
    const int64_t max_bytes = engine.info().max_text_bytes;
    std::vector<std::string> parts =
        interactive ? prompt_.documents(max_bytes) : prompt_.parts(max_bytes);
    Request request;
    prompt_.start(request);
    answer_.start(request);
    request.prefill = policies.prefill;
    request.decode = policies.decode;
    request.sampling = sampling_.params(engine);
    if (interactive) {
      chat(engine, request, std::move(parts), prompt_.session(), interrupts_);
      return kExitOk;
    }
    const std::filesystem::path& saved = prompt_.session();
    Session session(engine, saved.empty() ? 0 : kept_bytes(engine));
    if (!saved.empty() && std::filesystem::exists(saved)) load_session(session, saved, request);
    prompt_.fill(request, engine, std::move(parts));
    const Generation generation = answer(engine, session, request);
    if (!saved.empty() && !generation.tokens.empty()) {
      request.messages.push_back({"assistant", {generation.text}});
      save_session(session, saved, request);
    }
    return generation.finish_reason == FinishReason::kCancelled ? kExitInterrupted : kExitOk;
  }

 private:
  Generation answer(Engine& engine, Session& session, const Request& request) {
    const KeysHidden hidden;
    ProgressBar progress("reading");
    const Interrupts::Scope scope(interrupts_);
    Generation generation = session.generate(
        request, answer_.json() ? watch(progress) : watch(progress, print), scope.token());
    progress.clear();
    if (answer_.json()) {
      print_json(to_json(generation, engine.info().load_ms, policy_.describe()));
    } else {
      if (!generation.text.ends_with('\n')) print("\n");
      fmt::print(stderr, "{}\n", stats_line(generation));
    }
    return generation;
  }

  Interrupts& interrupts_;
  PromptOptions prompt_;
  AnswerOptions answer_;
  ModelOptions model_;
  SamplingOptions sampling_;
  PolicyOptions policy_;
};

}  // namespace

Command add_run(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command = program.add_subcommand("run", "Answer a prompt, or chat on a terminal");
  return {command, [run = std::make_shared<Run>(*command, interrupts)] { return (*run)(); },
          /*on_ranks=*/true};
}

}  // namespace ei::cli
