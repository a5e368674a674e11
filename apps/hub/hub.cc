#include "apps/hub/hub.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "apps/cli/ascii.h"
#include "apps/cli/units.h"
#include "apps/hub/cache.h"
#include "apps/hub/files.h"
#include "apps/hub/remote.h"
#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::hub {
namespace {

namespace fs = std::filesystem;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// nullopt: it is not there, or not all of it.
std::optional<fs::path> find_cached(const fs::path& cache, const ModelName& name) {
  const CachedRepo repo(cache, name.repo);
  const std::optional<std::string> commit = repo.commit(name.revision);
  return commit ? find_model(repo.snapshot(*commit), name) : std::nullopt;
}

// What a path into a cache means: the folder of a repo or a snapshot of one. nullopt: it is none.
std::optional<fs::path> in_cache_folder(const fs::path& path) {
  const fs::path dir = fs::absolute(path / "").parent_path();  // without a slash at its end
  ModelName name;
  if (const std::optional<std::string> repo = repo_of(dir)) {
    name.repo = *repo;
  } else if (const auto parent = repo_of(dir.parent_path().parent_path());
             parent && dir.parent_path().filename() == "snapshots") {
    name.repo = *parent;
    name.revision = dir.filename().string();
    return find_model(dir, name);
  } else {
    return std::nullopt;
  }
  const std::optional<fs::path> found = find_cached(dir.parent_path(), name);
  require(found.has_value(), "{}: there is no whole model of the revision main", path.string());
  return found;
}

// Fetches files of one commit.
class Pull {
 public:
  Pull(const Hub& hub, const ModelName& name, const Reporter& reporter)
      : hub_(hub),
        name_(name),
        reporter_(reporter),
        repo_(hub.cache, name.repo),
        remote_(hub.endpoint, hub.token, hub.certificates, name) {}

  fs::path run() {
    const Remote::Listing listing = remote_.list();
    commit_ = listing.commit;
    const fs::path dir = repo_.snapshot(commit_);
    fs::create_directories(dir);
    fs::create_directories(repo_.dir() / "blobs");
    const std::vector<RepoFile> configuration = configuration_files(listing.files);
    const bool is_directory =
        name_.tag.empty() &&
        std::ranges::find(configuration, "config.json", &RepoFile::path) != configuration.end();
    std::vector<RepoFile> weights;
    if (is_directory) {
      fetch(configuration);
      weights = weight_files(listing.files, dir);
    }
    if (weights.empty()) weights = gguf(listing.files);
    fetch(weights);
    repo_.set_commit(name_.revision, commit_);
    const std::optional<fs::path> model = find_model(dir, name_);
    require(model.has_value(), "{}: {} has no tokenizer.json and no tokenizer.model", name_.str(),
            hub_.endpoint);
    return *model;
  }

 private:
  std::vector<RepoFile> gguf(const std::vector<RepoFile>& files) const {
    const std::optional<GgufModel> model = find_gguf(files, name_);
    if (model) {
      require(model->complete, "{}: parts of it are missing at {}", name_.str(), hub_.endpoint);
      return model->files;
    }
    std::vector<std::string> tags;
    for (const GgufModel& other : gguf_models(files)) tags.push_back(other.tag);
    if (!tags.empty())
      fail("{} has no GGUF file {}; there are: {}", name_.repo, name_.tag, fmt::join(tags, ", "));
    fail(
        "{} has neither safetensors nor GGUF files; weights of other kinds (pytorch_model.bin, "
        "...) are not read",
        name_.repo);
  }

  void fetch(const std::vector<RepoFile>& files) {
    struct Missing {
      std::string file;
      Remote::Blob blob;
    };
    std::vector<Missing> missing;
    int64_t total = 0, done = 0, left = 0;
    for (const RepoFile& file : files) {
      if (fs::exists(repo_.snapshot(commit_) / file.path)) continue;  // this very commit's
      Remote::Blob blob = remote_.blob(commit_, file);
      total += blob.n_bytes;
      std::error_code none;
      const auto part = fs::file_size(repo_.blob(blob.etag).string() + ".incomplete", none);
      if (!fs::exists(repo_.blob(blob.etag))) left += blob.n_bytes - (none ? 0 : int64_t(part));
      missing.push_back({file.path, std::move(blob)});
    }
    check_room(left);
    for (const Missing& next : missing) {
      const Remote::Blob& blob = next.blob;
      const fs::path path = repo_.blob(blob.etag);
      if (!fs::exists(path)) {
        const FileLock lock(repo_.lock(blob.etag), [&] {
          reporter_.say(fmt::format("waiting for another process that fetches {}", next.file));
        });
        if (!fs::exists(path)) {
          if (!std::exchange(announced_, true))
            reporter_.say(fmt::format("fetching {} from {} into {}", name_.str(), hub_.endpoint,
                                      hub_.cache.string()));
          remote_.fetch(blob, path, [&](int64_t n) { reporter_.on_bytes(done + n, total); });
        }
      }
      repo_.link(commit_, next.file, blob.etag);
      reporter_.on_bytes(done += blob.n_bytes, total);
    }
  }

  void check_room(int64_t n_bytes) const {
    std::error_code error;
    const auto room = static_cast<int64_t>(fs::space(hub_.cache, error).available);
    require(error || n_bytes <= room,
            "{}: {} are missing and {} has room for {}; HF_HOME may name another place",
            name_.str(), cli::human_bytes(n_bytes), hub_.cache.string(), cli::human_bytes(room));
  }

  const Hub& hub_;
  ModelName name_;
  const Reporter& reporter_;
  CachedRepo repo_;
  Remote remote_;
  std::string commit_;
  bool announced_ = false;
};

}  // namespace

Hub Hub::from_environment() {
  Hub hub;
  const std::string xdg = variable("XDG_CACHE_HOME");
  fs::path home = variable("HF_HOME");
  if (home.empty())
    home = (xdg.empty() ? fs::path(variable("HOME")) / ".cache" : fs::path(xdg)) / "huggingface";
  hub.cache = variable("HF_HUB_CACHE");
  if (hub.cache.empty()) hub.cache = home / "hub";
  hub.endpoint = variable("HF_ENDPOINT");
  if (hub.endpoint.empty()) hub.endpoint = "https://huggingface.co";
  while (hub.endpoint.ends_with('/')) hub.endpoint.pop_back();
  hub.token = cli::trimmed(variable("HF_TOKEN"));
  fs::path token = variable("HF_TOKEN_PATH");
  if (token.empty()) token = home / "token";
  if (hub.token.empty() && fs::is_regular_file(token))
    hub.token = cli::trimmed(read_file(token, 4096));
  for (const char* name : {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"})
    if (hub.certificates.empty()) hub.certificates = variable(name);
  const std::string offline = cli::upper_case(variable("HF_HUB_OFFLINE"));
  hub.offline = offline == "1" || offline == "ON" || offline == "YES" || offline == "TRUE";
  return hub;
}

fs::path resolve(const Hub& hub, const std::string& text, const Reporter& reporter) {
  const fs::path path = text;
  if (file_exists(path)) return in_cache_folder(path).value_or(path);
  const std::optional<ModelName> name = parse_name(text);
  if (!name) return path;
  if (const std::optional<fs::path> found = find_cached(hub.cache, *name)) return *found;
  require(!hub.offline,
          "{} is no path, and as a model it is not, or not all of it, in {}; it is fetched when "
          "neither --offline nor HF_HUB_OFFLINE is given",
          text, hub.cache.string());
  return pull(hub, *name, reporter);
}

fs::path pull(const Hub& hub, const ModelName& name, const Reporter& reporter) {
  require(!hub.offline, "{} cannot be fetched: --offline or HF_HUB_OFFLINE is given", name.str());
  return Pull(hub, name, reporter).run();
}

std::vector<CachedModel> list(const Hub& hub) {
  std::vector<CachedModel> models;
  for (const std::string& repo : cached_repos(hub.cache)) {
    const CachedRepo cached(hub.cache, repo);
    for (const auto& [revision, commit] : cached.snapshots()) {
      const fs::path dir = cached.snapshot(commit);
      ModelName name{repo, revision, ""};
      const std::vector<RepoFile> files = files_below(dir);
      const std::vector<GgufModel> ggufs = gguf_models(files);
      for (const GgufModel& gguf : ggufs) {
        name.tag = gguf.tag;
        models.push_back({name.str(), gguf.n_bytes(), gguf.complete});
      }
      if (!ggufs.empty()) continue;
      int64_t n_bytes = 0;
      for (const RepoFile& file : files) n_bytes += file.n_bytes;
      models.push_back({name.str(), n_bytes, find_model(dir, name).has_value()});
    }
  }
  return models;
}

int64_t remove(const Hub& hub, const ModelName& name) {
  const CachedRepo repo(hub.cache, name.repo);
  const bool everything = name.tag.empty() && name.revision == "main";
  const std::optional<std::string> commit = repo.commit(name.revision);
  std::optional<GgufModel> gguf;
  if (commit && !name.tag.empty()) gguf = find_gguf(files_below(repo.snapshot(*commit)), name);
  require(everything ? fs::is_directory(repo.dir()) : commit && (name.tag.empty() || gguf),
          "{} is not in {}; `entropyinfer list` says what is", name.str(), hub.cache.string());
  return repo.remove([&](const std::string& in, const std::string& file) {
    if (everything) return true;
    return in == *commit &&
           (!gguf || std::ranges::find(gguf->files, file, &RepoFile::path) != gguf->files.end());
  });
}

}  // namespace ei::hub
