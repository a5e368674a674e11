#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace ei::hub {

// What a model of a hub is called: org/repo, org/repo@revision, org/repo:Q4_K_M.
struct ModelName {
  std::string repo;               // org/repo
  std::string revision = "main";  // a branch, a tag or a commit
  std::string tag;                // of a GGUF file, or its name; empty: the repo's only model

  std::string str() const;
};

// nullopt when nothing of a hub can be called that.
std::optional<ModelName> parse_name(std::string_view text);

// Whether names in a listing are those of files below it: foreign names become paths.
bool is_relative_path(std::string_view text);

}  // namespace ei::hub
