#include "ei/cache/page_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <system_error>

#include "ei/base/fail.h"
#include "ei/cache/page_image.h"
#include "ei/io/errno_text.h"
#include "ei/io/new_file.h"

namespace ei {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxWaitingBytes = int64_t{256} << 20;
constexpr int64_t kMaxSpareBytes = int64_t{16} << 20;
constexpr size_t kMinWaiting = 16;  // images of any size: the end of a long answer of a large model
constexpr std::string_view kSuffix = ".safetensors";
constexpr int64_t kSecond = 1'000'000'000;

int64_t now_ns() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// The key that a file is named by, if it is one of ours.
bool parse_name(std::string_view name, PageStore::Key& key) {
  if (name.size() != 16 + kSuffix.size() || !name.ends_with(kSuffix)) return false;
  const auto [end, error] = std::from_chars(name.data(), name.data() + 16, key, 16);
  return error == std::errc() && end == name.data() + 16;
}

}  // namespace

PageStore::PageStore(Options options) : options_(std::move(options)) {
  const std::string directory = options_.directory.string();
  std::error_code error;
  if (!fs::exists(options_.directory, error)) {
    fs::create_directories(options_.directory, error);
    if (!error) fs::permissions(options_.directory, fs::perms::owner_all, error);
  }
  require(!error && fs::is_directory(options_.directory, error),
          "{}: is no directory that can be used for pages: {}", directory,
          error ? error.message() : "it is a file");
  lock_ = ::open((options_.directory / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  require(lock_ >= 0, "{}: cannot be written: {}", directory, errno_text());
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    fail("{}: another process keeps its pages there; give each a directory of its own", directory);
  }
  try {
    find_files();
    writer_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

PageStore::~PageStore() {
  writer_.request_stop();
  writer_.join();
  ::close(lock_);
}

// By their age; what a killed process was writing is removed.
void PageStore::find_files() {
  std::vector<std::pair<int64_t, Key>> by_age;
  std::error_code error;
  for (fs::directory_iterator it(options_.directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    Key key = 0;
    struct stat status {};
    std::error_code ignored;
    constexpr size_t kNameSize = 16 + kSuffix.size();
    if (name.size() > kNameSize && name.ends_with(NewFile::kSuffix) &&
        parse_name(std::string_view(name).substr(0, kNameSize), key))
      fs::remove(it->path(), ignored);
    if (!parse_name(name, key) || path(key).filename() != name ||
        ::lstat(it->path().c_str(), &status) != 0)
      continue;
    const int64_t ns = status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec;
    by_age.emplace_back(ns, key);
    files_[key] = {.bytes = status.st_size, .used_ns = ns, .use = {}};
    bytes_ += status.st_size;
  }
  require(!error, "{}: cannot be read: {}", options_.directory.string(), error.message());
  std::ranges::sort(by_age);
  for (const auto& [age, key] : by_age) {
    uses_.push_front(key);
    files_[key].use = uses_.begin();
  }
  shrink();
}

fs::path PageStore::path(Key key) const {
  return options_.directory / fmt::format("{:016x}{}", key, kSuffix);
}

bool PageStore::has(Key key) const {
  const std::lock_guard lock(mutex_);
  return files_.contains(key) ||
         std::ranges::any_of(waiting_, [&](const Waiting& w) { return w.key == key; });
}

bool PageStore::has_room(int64_t bytes) const {
  const std::lock_guard lock(mutex_);
  return bytes <= options_.max_bytes &&
         (waiting_.size() < kMinWaiting || waiting_bytes_ + bytes <= kMaxWaitingBytes);
}

std::vector<std::byte> PageStore::spare() {
  const std::lock_guard lock(mutex_);
  if (spare_.empty()) return {};
  std::vector<std::byte> bytes = std::move(spare_.back());
  spare_.pop_back();
  spare_bytes_ -= static_cast<int64_t>(bytes.capacity());
  return bytes;
}

void PageStore::put(Key key, Key before, std::vector<std::byte> image) {
  const std::lock_guard lock(mutex_);
  waiting_bytes_ += std::ssize(image);
  waiting_.push_back({key, before, std::move(image)});
  changed_.notify_all();
}

std::vector<std::byte> PageStore::get(Key key) {
  int64_t size = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto it = files_.find(key);
    if (it == files_.end()) return {};
    size = it->second.bytes;
  }
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  const int file = ::open(path(key).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (file < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
    warn(fmt::format("{}: cannot be read now: {}", path(key).string(), errno_text()));
    return {};
  }
  struct stat status {};
  errno = 0;
  bool whole =
      file >= 0 && ::fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == size;
  for (size_t done = 0; whole && done < bytes.size();) {
    const ssize_t n = ::read(file, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    whole = n > 0;
    done += static_cast<size_t>(std::max<ssize_t>(n, 0));
  }
  if (whole) {
    ::close(file);
    return bytes;
  }
  discard(key, errno != 0 ? errno_text() : "it is not what was written");
  if (file >= 0) ::close(file);
  return {};
}

void PageStore::discard(Key key, const std::string& why) {
  warn(fmt::format("{}: cannot be used, and is removed: {}", path(key).string(), why));
  const std::lock_guard lock(mutex_);
  if (files_.contains(key)) erase(key);
}

void PageStore::touch(std::span<const Key> keys) {
  int64_t now = now_ns();
  const std::lock_guard lock(mutex_);
  // A prompt that is read on touches all its pages every time: they are the first already.
  auto first = uses_.begin();
  const bool in_order =
      std::ranges::all_of(keys, [&](Key key) { return !files_.contains(key) || key == *first++; });
  if (in_order) return;
  for (size_t i = keys.size(); i-- > 0; ++now) {
    const auto it = files_.find(keys[i]);
    if (it == files_.end()) continue;
    uses_.splice(uses_.begin(), uses_, it->second.use);
    set_time(keys[i], now);
  }
}

void PageStore::set_time(Key key, int64_t ns) {
  const timespec time = {.tv_sec = ns / kSecond, .tv_nsec = ns % kSecond};
  const timespec times[] = {time, time};
  ::utimensat(AT_FDCWD, path(key).c_str(), times, AT_SYMLINK_NOFOLLOW);
  files_[key].used_ns = ns;
}

int64_t PageStore::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void PageStore::flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_.empty(); });
}

void PageStore::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [&] { return !waiting_.empty(); }) || !waiting_.empty()) {
    Waiting& next = waiting_.front();  // stays there, so that has() knows of it
    const int64_t n_bytes = std::ssize(next.image);
    lock.unlock();
    write(next);
    lock.lock();
    const auto capacity = static_cast<int64_t>(next.image.capacity());
    if (spare_bytes_ + capacity <= kMaxSpareBytes) {
      spare_.push_back(std::move(next.image));
      spare_bytes_ += capacity;
    }
    waiting_.pop_front();
    waiting_bytes_ -= n_bytes;
    changed_.notify_all();
  }
}

void PageStore::write(Waiting& waiting) {
  const auto& [key, before, image] = waiting;
  try {
    seal(waiting.image);
    NewFile file(path(key));
    file.write(image);
    file.commit(/*to_disk=*/false);
    const std::lock_guard lock(mutex_);
    const auto one = files_.find(before);
    const bool follows = one != files_.end();
    const int64_t ns = follows ? one->second.used_ns - 1 : now_ns();
    files_[key] = {.bytes = std::ssize(image),
                   .used_ns = ns,
                   .use = uses_.insert(follows ? std::next(one->second.use) : uses_.begin(), key)};
    set_time(key, ns);
    bytes_ += std::ssize(image);
    shrink();
  } catch (const std::exception& error) {
    warn(error.what());
  }
}

void PageStore::shrink() {
  while (bytes_ > options_.max_bytes && !uses_.empty()) erase(uses_.back());
}

void PageStore::erase(Key key) {
  const auto it = files_.find(key);
  if (it == files_.end()) return;
  bytes_ -= it->second.bytes;
  uses_.erase(it->second.use);
  files_.erase(it);
  std::error_code ignored;
  fs::remove(path(key), ignored);
}

void PageStore::warn(const std::string& what) const noexcept {
  try {
    if (options_.warn) options_.warn(what);
  } catch (...) {
  }
}

}  // namespace ei
