#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <string>

#include "apps/cli/progress.h"
#include "apps/hub/hub.h"

namespace ei::cli {

// Shows on stderr what is fetched from a hub.
class FetchProgress {
 public:
  hub::Reporter reporter();
  void clear() { bar_.clear(); }

 private:
  ProgressBar bar_{"fetching", "MiB"};
  std::chrono::steady_clock::time_point shown_{};
};

// Which model: the argument MODEL and the flag --offline. Must stay where it is until the command
// line is parsed.
class ModelArgument {
 public:
  explicit ModelArgument(CLI::App& command);
  ModelArgument(const ModelArgument&) = delete;

  CLI::Option* option() const { return option_; }
  bool empty() const { return text_.empty(); }
  // What the engine loads. What is missing of a model of a hub is fetched when this is first asked.
  const std::filesystem::path& path() const;
  // What the model is called: org/repo:TAG, or the last part of a path.
  std::string name() const;

 private:
  CLI::Option* option_;
  std::string text_;
  bool offline_ = false;
  mutable std::filesystem::path path_;
};

}  // namespace ei::cli
