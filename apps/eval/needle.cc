#include "apps/eval/needle.h"

#include <memory>

#include "apps/cli/input.h"
#include "apps/cli/limits.h"
#include "apps/eval/comparison.h"
#include "apps/eval/json_lines.h"
#include "apps/eval/task.h"

namespace ei::eval {
namespace {

// All the text files of a folder, one after another, in the order of their names.
std::string read_haystack(const std::filesystem::path& dir) {
  std::string text;
  for (const auto& file : files_in(dir, ".txt")) text += cli::read_text(file) + "\n";
  return text;
}

class NeedleEval {
 public:
  NeedleEval(CLI::App& command, cli::Interrupts& interrupts) : comparison_(command, interrupts) {
    const auto list = [&](const char* flag, auto& values, const char* text, const char* help) {
      return command.add_option(flag, values, help)->delimiter(',')->option_text(text);
    };
    list("--lengths", lengths_, "N,.. [4k,8k]", "Tokens of the prompts; 4k is 4096")
        ->transform(cli::count(1, int64_t{1} << 30));
    list("--tasks", tasks_, "T,.. [all]", "Which questions")->check(CLI::IsMember(task_names()));
    command.add_option("--depths", depths_, "Where a needle stands, in percent of the text")
        ->delimiter(',')
        ->check(cli::between(0, 100))
        ->option_text("X,.. [0,25,50,75,100]");
    command
        .add_option("--samples", n_samples_,
                    "Prompts per task and length; they take the depths in turn")
        ->transform(cli::count(1, 100000))
        ->option_text("N [5]");
    command.add_option("--seed", seed_, "Another seed, other prompts")->option_text("N [1]");
    command.add_option("--haystack", haystack_, "Fill the prompts with the .txt files of a folder")
        ->option_text("DIR [made-up sentences]");
  }

  int operator()() {
    std::vector<Item> items;
    int64_t n_documents = 0;
    for (const int64_t length : lengths_)
      for (int64_t i = 0; i < n_samples_; ++i, ++n_documents)
        for (const std::string& task : tasks_)
          items.push_back({.task = task,
                           .length = length,
                           .sample = i,
                           .depth = has_depth(task) ? depth_of(i) : -1,
                           .document = task == "single" ? -1 : n_documents});
    const std::string haystack = haystack_.empty() ? "" : read_haystack(haystack_);
    Engine engine = comparison_.load();
    return comparison_.run(
        engine,
        {{"eval", "needle"},
         {"lengths", lengths_},
         {"tasks", tasks_},
         {"samples", n_samples_},
         {"depths", depths_},
         {"seed", seed_},
         {"haystack", haystack_.string()}},
        items, [&](const Item& item) {
          const Sample sample = make_sample(
              {.task = item.task,
               .n_tokens = item.length,
               .depth = depth_of(item.sample),
               .seed = 1000003 * seed_ + static_cast<uint64_t>(1009 * item.sample + item.length),
               .haystack = haystack},
              [&](std::string_view text) { return std::ssize(engine.tokenize(text)); });
          return Posed{.parts = {sample.document, sample.question},
                       .expected = sample.expected,
                       .score = [expected = sample.expected](const std::string& answer) {
                         return score(expected, answer);
                       }};
        });
  }

 private:
  double depth_of(int64_t sample) const {
    return depths_[static_cast<size_t>(sample) % depths_.size()] / 100;
  }

  Comparison comparison_;
  std::vector<std::string> tasks_ = task_names();
  std::vector<int64_t> lengths_ = {4096, 8192};
  std::vector<double> depths_ = {0, 25, 50, 75, 100};
  int64_t n_samples_ = 5;
  uint64_t seed_ = 1;
  std::filesystem::path haystack_;
};

}  // namespace

cli::Command add_needle(CLI::App& eval, cli::Interrupts& interrupts) {
  CLI::App* command = eval.add_subcommand(
      "needle", "Questions on facts hidden in long texts, of any number of policies");
  return {command,
          [needle = std::make_shared<NeedleEval>(*command, interrupts)] { return (*needle)(); },
          /*on_ranks=*/true};
}

}  // namespace ei::eval
