#include "apps/hub/files.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "apps/cli/ascii.h"
#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::hub {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";

const RepoFile* find(std::span<const RepoFile> files, std::string_view path) {
  const auto it = std::ranges::find(files, path, &RepoFile::path);
  return it == files.end() ? nullptr : &*it;
}

// NAME-00002-of-00003 without its end, and how many parts there are; 1: it was not split.
std::pair<std::string_view, size_t> without_part(std::string_view stem) {
  constexpr std::string_view kPattern = "-00001-of-00001";
  if (stem.size() <= kPattern.size()) return {stem, 1};
  const std::string_view end = stem.substr(stem.size() - kPattern.size());
  for (size_t i = 0; i < end.size(); ++i)
    if (kPattern[i] == '0' || kPattern[i] == '1' ? end[i] < '0' || end[i] > '9'
                                                 : end[i] != kPattern[i])
      return {stem, 1};
  size_t n_parts = 1;
  std::from_chars(end.data() + end.size() - 5, end.data() + end.size(), n_parts);
  return {stem.substr(0, stem.size() - kPattern.size()), n_parts};
}

}  // namespace

int64_t GgufModel::n_bytes() const {
  int64_t n = 0;
  for (const RepoFile& file : files) n += file.n_bytes;
  return n;
}

std::vector<RepoFile> files_below(const fs::path& dir) {
  std::vector<RepoFile> files;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(dir, error))
    if (entry.is_regular_file(error))  // where the link leads
      files.push_back(
          {entry.path().lexically_relative(dir).string(), static_cast<int64_t>(entry.file_size())});
  std::ranges::sort(files, {}, &RepoFile::path);
  return files;
}

std::vector<GgufModel> gguf_models(std::span<const RepoFile> files) {
  std::map<std::string, GgufModel, std::less<>>
      models;  // by what their files' names have in common
  std::map<std::string, size_t, std::less<>> n_parts;
  for (const RepoFile& file : files) {
    const std::string_view path = file.path;
    if (!path.ends_with(".gguf")) continue;
    const std::string_view name = path.substr(path.rfind('/') + 1);
    // What belongs to a model and is none.
    if (name.find("mmproj") != name.npos || name.find("imatrix") != name.npos) continue;
    const auto [stem, n] = without_part(path.substr(0, path.size() - 5));
    const std::string key(stem);
    models[key].files.push_back(file);
    models[key].tag = cli::upper_case(stem.substr(stem.find_last_of("-./") + 1));
    n_parts[key] = n;
  }
  std::vector<GgufModel> found;
  for (auto& [stem, model] : models) {
    std::ranges::sort(model.files, {}, &RepoFile::path);
    model.complete = model.files.size() == n_parts[stem];
    found.push_back(std::move(model));
  }
  return found;
}

std::optional<GgufModel> find_gguf(std::span<const RepoFile> files, const ModelName& name) {
  std::vector<GgufModel> models = gguf_models(files);
  if (!name.tag.empty())
    std::erase_if(models, [&](const GgufModel& model) {
      return model.tag != cli::upper_case(name.tag) && !find(model.files, name.tag);
    });
  if (models.empty()) return std::nullopt;
  if (models.size() == 1) return models.front();
  std::set<std::string> tags;
  for (const GgufModel& model : models) tags.insert(model.tag);
  const bool by_tag = tags.size() == models.size();
  std::vector<std::string> choices;
  for (const GgufModel& model : models)
    choices.push_back(fmt::format("{}:{} ({:.1f} GB)", name.repo,
                                  by_tag ? model.tag : model.files.front().path,
                                  double(model.n_bytes()) / 1e9));
  fail("{} is several models, say which: {}", name.str(), fmt::join(choices, ", "));
}

std::vector<RepoFile> configuration_files(std::span<const RepoFile> files) {
  static const std::set<std::string_view> kNames = {"config.json",
                                                    "generation_config.json",
                                                    "tokenizer.json",
                                                    "tokenizer.model",
                                                    "tokenizer_config.json",
                                                    "special_tokens_map.json",
                                                    "chat_template.jinja",
                                                    "chat_template.json",
                                                    "additional_chat_templates/tool_use.jinja",
                                                    kIndex};
  std::vector<RepoFile> found;
  std::ranges::copy_if(files, std::back_inserter(found),
                       [](const RepoFile& file) { return kNames.contains(file.path); });
  return found;
}

std::vector<RepoFile> weight_files(std::span<const RepoFile> files, const fs::path& dir) {
  // As the engine chooses.
  if (const RepoFile* single = find(files, kSingle)) return {*single};
  if (find(files, kIndex) == nullptr) return {};
  const fs::path path = dir / kIndex;
  const Json index = read_json(path, {.max_bytes = 64 << 20});
  const Fields fields(index, path.string());
  const Json& map = fields.at("weight_map");
  require(map.is_object(), "{}: field \"weight_map\" is not an object", path.string());
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map.items()) {
    require(shard.is_string(), "{}: weight_map: {} is not a file's name", path.string(),
            shown(tensor));
    shards.insert(shard.get<std::string>());
  }
  std::vector<RepoFile> found;
  for (const std::string& shard : shards) {
    const RepoFile* file = find(files, shard);
    require(file != nullptr, "{}: weight_map: {} is not there", path.string(), shown(shard));
    found.push_back(*file);
  }
  return found;
}

std::optional<fs::path> find_model(const fs::path& dir, const ModelName& name) {
  const std::vector<RepoFile> files = files_below(dir);
  const bool tokenizer = find(files, "tokenizer.json") || find(files, "tokenizer.model");
  if (name.tag.empty() && tokenizer && find(files, "config.json") != nullptr) {
    try {
      if (!weight_files(files, dir).empty()) return dir;
    } catch (const Error&) {
      return std::nullopt;  // a shard is missing
    }
  }
  const std::optional<GgufModel> gguf = find_gguf(files, name);
  if (!gguf || !gguf->complete) return std::nullopt;
  return dir / gguf->files.front().path;
}

}  // namespace ei::hub
