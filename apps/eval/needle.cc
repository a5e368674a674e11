#include "apps/eval/needle.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>

#include "apps/cli/input.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/options.h"
#include "apps/cli/progress.h"
#include "apps/cli/report.h"
#include "apps/eval/policies.h"
#include "apps/eval/results.h"
#include "apps/eval/summary.h"
#include "apps/eval/task.h"
#include "ei/base/fail.h"

namespace ei::eval {
namespace {

constexpr int64_t kAnswerTokens = 128;

// All the text files of a folder, one after another, in the order of their names.
std::string read_haystack(const std::filesystem::path& dir) {
  require(std::filesystem::is_directory(dir), "{}: is no folder", dir.string());
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir))
    if (entry.path().extension() == ".txt") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  require(!files.empty(), "{}: has no .txt files", dir.string());
  std::string text;
  for (const auto& file : files) text += cli::read_text(file) + "\n";
  return text;
}

class NeedleEval {
 public:
  NeedleEval(CLI::App& command, cli::Interrupts& interrupts)
      : interrupts_(interrupts), model_(command), policy_(command, /*with_names=*/false) {
    const auto list = [&](const char* flag, std::vector<std::string>& values, const char* text,
                          const char* help) {
      return command.add_option(flag, values, help)->delimiter(',')->option_text(text);
    };
    list("--lengths", lengths_, "N,.. [4k,8k]", "Tokens of the prompts; 4k is 4096");
    list("--tasks", tasks_, "T,.. [all]", "Which questions")->check(CLI::IsMember(task_names()));
    list("--policies", policies_, "P+D,..",
         "What to compare: PREFILL+DECODE by their names, each with @N for its budget if wanted "
         "[dense+full,entropy+latent]");
    command.add_option("--depths", depths_, "Where a needle stands, in percent of the text")
        ->delimiter(',')
        ->check(CLI::Range(0.0, 100.0))
        ->option_text("X,.. [0,25,50,75,100]");
    command
        .add_option("--samples", n_samples_,
                    "Prompts per task and length; they take the depths in turn")
        ->check(CLI::Range(1, 100000))
        ->option_text("N [5]");
    command.add_option("--seed", seed_, "Another seed, other prompts")->option_text("N [1]");
    command.add_option("--haystack", haystack_, "Fill the prompts with the .txt files of a folder")
        ->option_text("DIR [made-up sentences]");
    command
        .add_option("--out", out_,
                    "Write answers.jsonl and report.html into this folder; an evaluation found "
                    "there goes on")
        ->option_text("DIR");
  }

  int operator()() {
    for (const std::string& name : policies_) compared_.push_back(parse_policies(name, policy_));
    // Those that read a prompt in the same way follow each other: it is read once for them.
    for (auto it = compared_.begin(); it != compared_.end();)
      it =
          std::stable_partition(it, compared_.end(), [prefill = it->policies.prefill](auto& other) {
            return other.policies.prefill == prefill;
          });
    std::vector<int64_t> lengths;
    for (const std::string& length : lengths_) lengths.push_back(parse_length(length));
    const std::string haystack = haystack_.empty() ? "" : read_haystack(haystack_);

    Engine engine = model_.load();
    const nlohmann::ordered_json about = describe();
    std::optional<ResultFile> file;
    if (!out_.empty()) {
      std::filesystem::create_directories(out_);
      file.emplace(out_ / "answers.jsonl", about);
      results_ = file->results();
    }

    std::vector<Todo> todo;
    int64_t n_tokens = 0, n_done = 0;
    for (const int64_t length : lengths)
      for (const std::string& task : tasks_)
        for (int64_t i = 0; i < n_samples_; ++i) {
          todo.push_back({length, task, i});
          n_tokens += length * std::ssize(compared_);
          for (const NamedPolicies& policy : compared_)
            if (known(todo.back(), policy)) n_done += length;
        }
    const int64_t n_known = n_done;

    const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    Session session(engine, 2 * longest * engine.info().kv_bytes_per_token);
    cli::ProgressBar progress("eval needle");
    const cli::Interrupts::Scope scope(interrupts_);
    for (const Todo& prompt : todo) {
      if (scope.interrupted()) break;
      if (std::all_of(compared_.begin(), compared_.end(),
                      [&](const auto& policy) { return known(prompt, policy); }))
        continue;
      const Sample sample = make_sample(spec_of(prompt, haystack), [&](std::string_view text) {
        return std::ssize(engine.tokenize(text));
      });
      Request request;
      if (engine.info().chat_format.empty()) {
        request.tokens = engine.tokenize(sample.document + "\n\n" + sample.question);
      } else {
        request.messages = {{"user", {sample.document, sample.question}}};
      }
      request.max_tokens = kAnswerTokens;
      request.sampling = SamplingParams{};
      std::optional<Generation> read;  // the prompt, under the prefill policy at hand
      for (size_t p = 0; p < compared_.size(); ++p) {
        if (p > 0 && !(compared_[p].policies.prefill == compared_[p - 1].policies.prefill))
          read.reset();
        if (known(prompt, compared_[p])) continue;
        request.prefill = compared_[p].policies.prefill;
        request.decode = compared_[p].policies.decode;
        const Generation answer = session.generate(request, {}, scope.token());
        if (answer.finish_reason == FinishReason::kCancelled) break;
        if (!read) read = answer;
        Result result = result_of(prompt, compared_[p].name, sample, *read, answer);
        if (file) file->add(result);
        results_.push_back(std::move(result));
        progress.update(n_done += prompt.length, n_tokens, n_known);
      }
      session.clear();
    }
    progress.clear();
    if (!out_.empty()) {
      std::ofstream page(out_ / "report.html", std::ios::binary);
      require(bool(page << html(about, results_) << std::flush), "{}: cannot be written",
              (out_ / "report.html").string());
    }
    cli::print(table(summarize(results_)));
    return scope.interrupted() ? cli::kExitInterrupted : cli::kExitOk;
  }

 private:
  struct Todo {
    int64_t length = 0;
    std::string task;
    int64_t sample = 0;
  };

  bool known(const Todo& todo, const NamedPolicies& policy) const {
    return std::any_of(results_.begin(), results_.end(), [&](const Result& result) {
      return result.is_for(todo.task, todo.length, todo.sample, policy.name);
    });
  }

  double depth_of(const Todo& todo) const {
    return depths_[static_cast<size_t>(todo.sample) % depths_.size()] / 100;
  }

  SampleSpec spec_of(const Todo& todo, const std::string& haystack) const {
    return {.task = todo.task,
            .n_tokens = todo.length,
            .depth = depth_of(todo),
            .seed = 1000003 * seed_ + static_cast<uint64_t>(1009 * todo.sample + todo.length),
            .haystack = haystack};
  }

  Result result_of(const Todo& todo, const std::string& policy, const Sample& sample,
                   const Generation& read, const Generation& answer) const {
    const auto n_later = double(std::max<int64_t>(1, std::ssize(answer.tokens) - 1));
    return {.task = todo.task,
            .length = todo.length,
            .sample = todo.sample,
            .depth = has_depth(todo.task) ? depth_of(todo) : -1,
            .policy = policy,
            .expected = sample.expected,
            .answer = answer.text,
            .score = score(sample.expected, answer.text),
            .prompt_tokens = answer.prompt_tokens,
            .density = read.sparsity.density,
            .kv_bytes = answer.kv.entry_bytes,
            .kv_bytes_full = answer.kv.entry_bytes_full,
            .prefill_ms = read.timings.prefill_ms,
            .token_ms = answer.timings.decode_ms / n_later};
  }

  // What decides on the prompts and answers.
  nlohmann::ordered_json describe() const {
    nlohmann::ordered_json policies;
    for (const NamedPolicies& p : compared_) policies[p.name] = policy_.describe(p.policies);
    return {{"eval", "needle"}, {"model", model_.path().string()}, {"lengths", lengths_},
            {"tasks", tasks_},  {"samples", n_samples_},           {"depths", depths_},
            {"seed", seed_},    {"haystack", haystack_.string()},  {"policies", policies}};
  }

  cli::Interrupts& interrupts_;
  cli::ModelOptions model_;
  std::vector<std::string> lengths_ = {"4k", "8k"}, tasks_ = task_names(),
                           policies_ = {"dense+full", "entropy+latent"};
  std::vector<double> depths_ = {0, 25, 50, 75, 100};
  int64_t n_samples_ = 5;
  uint64_t seed_ = 1;
  std::filesystem::path haystack_, out_;
  cli::PolicyOptions policy_;
  std::vector<NamedPolicies> compared_;
  std::vector<Result> results_;
};

}  // namespace

cli::Command add_needle(CLI::App& eval, cli::Interrupts& interrupts) {
  CLI::App* command = eval.add_subcommand(
      "needle", "Questions on facts hidden in long texts, of any number of policies");
  return {command,
          [needle = std::make_shared<NeedleEval>(*command, interrupts)] { return (*needle)(); }};
}

}  // namespace ei::eval
