#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace ei::hub {

// One repo in the cache that Hugging Face's tools share:
//   models--org--repo/refs/main                  the commit that main is
//   models--org--repo/blobs/ETAG                 a file, by its hash
//   models--org--repo/snapshots/COMMIT/FILE      a link to its blob
//   .locks/models--org--repo/ETAG.lock           held by whoever writes the blob
class CachedRepo {
 public:
  CachedRepo(const std::filesystem::path& cache, const std::string& repo);

  const std::filesystem::path& dir() const { return dir_; }
  const std::filesystem::path& locks() const { return locks_; }
  std::filesystem::path blob(const std::string& etag) const { return dir_ / "blobs" / etag; }
  std::filesystem::path lock(const std::string& etag) const { return locks_ / (etag + ".lock"); }
  std::filesystem::path snapshot(const std::string& commit) const {
    return dir_ / "snapshots" / commit;
  }

  // The commit that a revision is here; nullopt: not known.
  std::optional<std::string> commit(const std::string& revision) const;
  void set_commit(const std::string& revision, const std::string& commit) const;
  // Puts a blob into a snapshot by the name of its file.
  void link(const std::string& commit, const std::string& file, const std::string& etag) const;
  // The snapshots that are here: commits, by the revision that each is, or by themselves.
  std::map<std::string, std::string> snapshots() const;
  // Takes the files that `goes` says out of snapshots, and the blobs that no snapshot has any more;
  // everything, when no file is left. Returns the bytes freed.
  int64_t remove(
      const std::function<bool(const std::string& commit, const std::string& file)>& goes) const;

 private:
  std::filesystem::path dir_, locks_;
};

// org/repo of all that the cache has, sorted.
std::vector<std::string> cached_repos(const std::filesystem::path& cache);

// The org/repo whose folder in such a cache this is; nullopt: it is another folder.
std::optional<std::string> repo_of(const std::filesystem::path& dir);

// Held by one process at a time; waits for it, after a call of `on_wait`.
class FileLock {
 public:
  template <class OnWait>
  FileLock(const std::filesystem::path& path, const OnWait& on_wait) : FileLock(path) {
    if (!try_lock()) {
      on_wait();
      lock();
    }
  }
  ~FileLock();
  FileLock(const FileLock&) = delete;

 private:
  explicit FileLock(const std::filesystem::path& path);
  bool try_lock();
  void lock();

  int file_ = -1;
};

}  // namespace ei::hub
