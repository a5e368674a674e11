#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "apps/hub/name.h"

namespace ei::hub {

// Where models come from and lie, as Hugging Face's tools have it from the environment:
// HF_HUB_CACHE or HF_HOME, HF_ENDPOINT, HF_TOKEN or the file that `hf auth login` writes,
// HF_HUB_OFFLINE; and SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE.
struct Hub {
  std::filesystem::path cache;
  std::string endpoint;
  std::string token;
  std::string certificates;  // a file of those that https trusts; empty: the system's
  bool offline = false;

  static Hub from_environment();
};

// What is to be known while something is fetched.
struct Reporter {
  std::function<void(const std::string& line)> say;
  std::function<void(int64_t done, int64_t total)> on_bytes;
};

// What the engine loads by this name: a path that is there as it is, or, of a repo's folder in the
// cache, its newest snapshot; else a model of the hub, which is taken from the cache and fetched
// only if something of it is missing there. What is neither stays as it is. All throw Error.
std::filesystem::path resolve(const Hub& hub, const std::string& text, const Reporter& reporter);

// The same for a name, but the hub is asked for its newest commit, of which what is missing is
// fetched: of the files those alone that are loaded.
std::filesystem::path pull(const Hub& hub, const ModelName& name, const Reporter& reporter);

// A model of the cache, or what there is of one.
struct CachedModel {
  std::string name;
  int64_t n_bytes = 0;
  bool complete = true;
};
std::vector<CachedModel> list(const Hub& hub);

// Takes a model out of the cache, or all models of a repo when the name has no tag. Returns the
// bytes freed.
int64_t remove(const Hub& hub, const ModelName& name);

}  // namespace ei::hub
