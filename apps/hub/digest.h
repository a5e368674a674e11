#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace ei::hub {

// The hash that a hub names a file by in its etag: the SHA-256 of what lies in git-lfs, of other
// files the id that git gives to them (SHA-1 of their size and content).
class Digest {
 public:
  // The hash of which `etag` is a value, for a file of n_bytes. Throws Error for an etag that is
  // neither.
  Digest(std::string_view etag, int64_t n_bytes);
  ~Digest();
  Digest(const Digest&) = delete;

  void add(std::string_view bytes);
  std::string hex();  // of all that was added; once

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace ei::hub
