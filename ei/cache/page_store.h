#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <list>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace ei {

// Images of pages in a directory, a file for each, named by its key: the tier below the memory of
// a prefix cache. It outlives the process, however that ends. Files are written by a thread of its
// own; the least recently used go when there are more than max_bytes. Whatever goes wrong with a
// file makes it a miss, said to `warn`, which any thread may call.
class PageStore {
 public:
  using Key = uint64_t;
  struct Options {
    std::filesystem::path directory;  // made where there is none
    int64_t max_bytes = 0;
    std::function<void(const std::string&)> warn;
  };
  // Throws Error when the directory cannot be used, or another process uses it.
  explicit PageStore(Options options);
  ~PageStore();  // writes what waits
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // Whether an image is there, or is to be written.
  bool has(Key key) const;
  // Whether an image of so many bytes would be taken now: what waits to be written is bounded.
  bool has_room(int64_t bytes) const;
  // Memory of an image that was written, for another: new memory takes the kernel longer to give
  // than an image to copy. Empty where there is none.
  std::vector<std::byte> spare();
  // Takes an image that has() not, not sealed yet, to be written. It was used when the one `before`
  // it was, and goes first.
  void put(Key key, Key before, std::vector<std::byte> image);
  // The bytes of a file, as they are; empty: there is none, or it cannot be read.
  std::vector<std::byte> get(Key key);
  // Forgets a file that is of no use, and says why.
  void discard(Key key, const std::string& why);
  // They were used: the first most recently.
  void touch(std::span<const Key> keys);

  std::filesystem::path path(Key key) const;
  int64_t bytes() const;  // of all files
  void flush();           // waits until what was put is written

 private:
  struct File {
    int64_t bytes = 0;
    int64_t used_ns = 0;  // the file's time, for the next process
    std::list<Key>::iterator use;
  };
  struct Waiting {
    Key key, before;
    std::vector<std::byte> image;
  };
  void find_files();
  void run(const std::stop_token& stop);
  void write(Waiting& waiting);
  // Under the mutex.
  void set_time(Key key, int64_t ns);
  void shrink();
  void erase(Key key);
  void warn(const std::string& what) const noexcept;

  const Options options_;
  int lock_ = -1;

  mutable std::mutex mutex_;  // guards all that follows
  std::condition_variable_any changed_;
  std::unordered_map<Key, File> files_;
  std::list<Key> uses_;  // most recent first
  int64_t bytes_ = 0;
  std::deque<Waiting> waiting_;  // the first is being written
  int64_t waiting_bytes_ = 0;
  std::vector<std::vector<std::byte>> spare_;  // of kMaxSpareBytes
  int64_t spare_bytes_ = 0;

  std::jthread writer_;  // last: stops before anything else goes
};

}  // namespace ei
