#include "apps/hub/cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "apps/cli/report.h"
#include "apps/hub/name.h"
#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::hub {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "models--";

std::string folder_name(std::string repo) {
  repo.replace(repo.find('/'), 1, "--");
  return std::string(kPrefix) + repo;
}

int64_t size_below(const fs::path& dir) {
  int64_t n_bytes = 0;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(dir, error))
    if (!entry.is_symlink() && entry.is_regular_file())
      n_bytes += static_cast<int64_t>(entry.file_size());
  return n_bytes;
}

}  // namespace

CachedRepo::CachedRepo(const fs::path& cache, const std::string& repo)
    : dir_(cache / folder_name(repo)), locks_(cache / ".locks" / folder_name(repo)) {}

std::optional<std::string> CachedRepo::commit(const std::string& revision) const {
  const fs::path ref = dir_ / "refs" / revision;
  std::string commit = revision;
  if (fs::is_regular_file(ref)) {
    commit = read_file(ref, 1024);
    commit.erase(commit.find_last_not_of(" \r\n") + 1);
  }
  if (!is_relative_path(commit) || !fs::is_directory(snapshot(commit))) return std::nullopt;
  return commit;
}

void CachedRepo::set_commit(const std::string& revision, const std::string& commit) const {
  if (revision == commit) return;
  const fs::path ref = dir_ / "refs" / revision;
  fs::create_directories(ref.parent_path());
  cli::save(ref, commit);
}

void CachedRepo::link(const std::string& commit, const std::string& file,
                      const std::string& etag) const {
  const fs::path at = snapshot(commit) / file;
  fs::create_directories(at.parent_path());
  const fs::path target = (dir_ / "blobs" / etag).lexically_relative(at.parent_path());
  // Under a name of its own first: another process may be at the same.
  const fs::path aside = at.string() + fmt::format(".{}", getpid());
  fs::create_symlink(target, aside);
  fs::rename(aside, at);
}

std::map<std::string, std::string> CachedRepo::snapshots() const {
  std::map<std::string, std::string> found;
  std::set<std::string> known;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(dir_ / "refs", error)) {
    if (!entry.is_regular_file()) continue;
    const std::string revision = entry.path().lexically_relative(dir_ / "refs").string();
    const std::optional<std::string> here = commit(revision);
    if (here && known.insert(*here).second) found[revision] = *here;
  }
  for (const auto& entry : fs::directory_iterator(dir_ / "snapshots", error)) {
    const std::string commit = entry.path().filename().string();
    if (!known.contains(commit)) found[commit] = commit;
  }
  return found;
}

int64_t CachedRepo::remove(
    const std::function<bool(const std::string&, const std::string&)>& goes) const {
  const int64_t before = size_below(dir_);
  std::set<std::string> used;
  std::vector<fs::path> links;
  const fs::path root = dir_ / "snapshots";
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_directory()) continue;
    const fs::path path = entry.path().lexically_relative(root);
    const std::string commit = path.begin()->string();
    if (goes(commit, path.lexically_relative(commit).string())) {
      links.push_back(entry.path());
    } else if (entry.is_symlink()) {
      used.insert(fs::read_symlink(entry).filename().string());
    } else {
      used.insert("");  // a file where links are usual
    }
  }
  if (used.empty()) {
    fs::remove_all(dir_);
    fs::remove_all(locks_);
    return before;
  }
  std::error_code none;
  for (const fs::path& link : links) {
    const fs::path blob = dir_ / "blobs" / fs::read_symlink(link, none).filename();
    fs::remove(link);
    if (!none && !used.contains(blob.filename().string())) fs::remove(blob, none);
  }
  return before - size_below(dir_);
}

std::optional<std::string> repo_of(const fs::path& dir) {
  std::string name = dir.filename().string();
  if (!name.starts_with(kPrefix) || !fs::is_directory(dir / "snapshots")) return std::nullopt;
  name.erase(0, kPrefix.size());
  const size_t dashes = name.find("--");
  if (dashes == name.npos) return std::nullopt;  // from the days before people had names
  return name.replace(dashes, 2, "/");
}

std::vector<std::string> cached_repos(const fs::path& cache) {
  std::vector<std::string> repos;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(cache, error))
    if (std::optional<std::string> repo = repo_of(entry.path())) repos.push_back(*std::move(repo));
  std::ranges::sort(repos);
  return repos;
}

FileLock::FileLock(const fs::path& path) {
  fs::create_directories(path.parent_path());
  file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  require(file_ >= 0, "{}: {}", path.string(), std::strerror(errno));
}

FileLock::~FileLock() { close(file_); }

bool FileLock::try_lock() { return flock(file_, LOCK_EX | LOCK_NB) == 0; }
void FileLock::lock() {
  while (flock(file_, LOCK_EX) != 0 && errno == EINTR) {
  }
}

}  // namespace ei::hub
