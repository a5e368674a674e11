#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "apps/hub/files.h"
#include "apps/hub/http.h"
#include "apps/hub/name.h"

namespace ei::hub {

// A hub's side of one model. All throw Error, in words that say what to do, when the hub has not
// got what is asked for, does not let this user have it, or cannot be reached.
class Remote {
 public:
  // endpoint: https://huggingface.co, or a mirror.
  Remote(std::string endpoint, std::string token, std::string certificates, ModelName name);

  struct Listing {
    std::string commit;
    std::vector<RepoFile> files;
  };
  Listing list();

  struct Blob {
    std::string url;
    std::string etag;  // its hash, by which the cache calls it
    int64_t n_bytes = 0;
  };
  Blob blob(const std::string& commit, const RepoFile& file);

  // Writes a blob to `path` by way of PATH.incomplete: what is there of it is gone on from, what
  // breaks off is tried again, and nothing takes its name that has not its hash. on_bytes is told
  // how much of it is there.
  void fetch(const Blob& blob, const std::filesystem::path& path,
             const std::function<void(int64_t)>& on_bytes);

 private:
  // Tries until there is an answer that a further try would not better.
  template <class Try>
  Response persist(const std::string& url, const Try& attempt);
  [[noreturn]] void explain(const Response& response, const std::string& url) const;

  std::string endpoint_;
  bool has_token_;
  ModelName name_;
  Http http_;
};

}  // namespace ei::hub
