#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/hub/name.h"

namespace ei::hub {

// A file of a repo, on the hub or in a folder.
struct RepoFile {
  std::string path;  // below the repo
  int64_t n_bytes = 0;
};

// One model in GGUF, in as many files as it was split into, in their order.
struct GgufModel {
  std::string tag;  // Q4_K_M, of NAME-Q4_K_M.gguf or NAME.Q4_K_M-00001-of-00002.gguf
  std::vector<RepoFile> files;
  bool complete = true;  // no part is missing

  int64_t n_bytes() const;
};

// All files below a folder, links followed.
std::vector<RepoFile> files_below(const std::filesystem::path& dir);

std::vector<GgufModel> gguf_models(std::span<const RepoFile> files);

// The model that `name` means. nullopt: there is none of this tag. Throws Error when there are
// several, with what each is called.
std::optional<GgufModel> find_gguf(std::span<const RepoFile> files, const ModelName& name);

// What a model in the format of Hugging Face needs besides its weights, as far as the repo has it.
std::vector<RepoFile> configuration_files(std::span<const RepoFile> files);

// Its weights, of which `dir` has the index, if there is one. Empty: there are none. Throws Error
// when the index is malformed or names a file that is not there.
std::vector<RepoFile> weight_files(std::span<const RepoFile> files,
                                   const std::filesystem::path& dir);

// What the engine is to load of the model `name` in this folder: the folder or a .gguf file in it.
// nullopt: something is missing.
std::optional<std::filesystem::path> find_model(const std::filesystem::path& dir,
                                                const ModelName& name);

}  // namespace ei::hub
