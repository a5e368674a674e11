#include "apps/cli/model_argument.h"

#include <fmt/format.h>

namespace ei::cli {

hub::Reporter FetchProgress::reporter() {
  return {.say =
              [this](const std::string& line) {
                bar_.clear();
                fmt::print(stderr, "entropyinfer: {}\n", line);
              },
          .on_bytes =
              [this](int64_t done, int64_t total) {
                const auto now = std::chrono::steady_clock::now();
                if (done < total && now - shown_ < std::chrono::seconds(1)) return;
                shown_ = now;
                bar_.update(done >> 20, total >> 20);
              }};
}

ModelArgument::ModelArgument(CLI::App& command) {
  option_ = command.add_option(
      "MODEL", text_,
      "A model of Hugging Face's hub (org/repo, org/repo:Q4_K_M), which is fetched once; a "
      "directory of a checkpoint; a .gguf file");
  command.add_flag("--offline", offline_, "Fetch nothing: what is not here is an error")
      ->group("Model");
}

const std::filesystem::path& ModelArgument::path() const {
  if (path_.empty()) {
    hub::Hub hub = hub::Hub::from_environment();
    hub.offline = hub.offline || offline_;
    FetchProgress progress;
    path_ = hub::resolve(hub, text_, progress.reporter());
    progress.clear();
  }
  return path_;
}

std::string ModelArgument::name() const {
  if (!std::filesystem::exists(text_) && hub::parse_name(text_)) return text_;
  return std::filesystem::weakly_canonical(text_).filename().string();
}

}  // namespace ei::cli
