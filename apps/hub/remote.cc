#include "apps/hub/remote.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "apps/hub/digest.h"
#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::hub {
namespace {

namespace fs = std::filesystem;

constexpr int kTries = 5;  // in a row that bring nothing

// "..." and W/"..." as they are.
std::string unquoted(std::string_view etag) {
  if (etag.starts_with("W/")) etag.remove_prefix(2);
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"')
    etag = etag.substr(1, etag.size() - 2);
  return std::string(etag);
}

int64_t number(std::string_view text, int64_t fallback) {
  int64_t n = fallback;
  return std::from_chars(text.data(), text.data() + text.size(), n).ec == std::errc() ? n
                                                                                      : fallback;
}

std::string escaped_path(std::string_view path) {
  std::string out;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    out += "/" + Http::escaped(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

// A file that grows, with the hash of what is in it.
class Part {
 public:
  Part(const fs::path& path, const Remote::Blob& blob)
      : path_(path), blob_(blob), digest_(std::make_unique<Digest>(blob.etag, blob.n_bytes)) {
    file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    check(file_ >= 0);
    std::string buffer(1 << 20, '\0');
    for (ssize_t n; (n = read(file_, buffer.data(), buffer.size())) != 0;) {
      check(n > 0);
      digest_->add(std::string_view(buffer).substr(0, static_cast<size_t>(n)));
      n_bytes_ += n;
    }
    if (n_bytes_ > blob.n_bytes) clear();
  }
  ~Part() { close(file_); }
  Part(const Part&) = delete;

  int64_t n_bytes() const { return n_bytes_; }

  void add(std::string_view piece) {
    require(n_bytes_ + std::ssize(piece) <= blob_.n_bytes,
            "{}: more than the {} bytes that the hub announced", blob_.url, blob_.n_bytes);
    digest_->add(piece);
    while (!piece.empty()) {
      const ssize_t n = write(file_, piece.data(), piece.size());
      if (n < 0 && errno == EINTR) continue;
      check(n >= 0);
      n_bytes_ += n;
      piece.remove_prefix(static_cast<size_t>(n));
    }
  }

  void clear() {
    check(ftruncate(file_, 0) == 0 && lseek(file_, 0, SEEK_SET) == 0);
    n_bytes_ = 0;
    digest_ = std::make_unique<Digest>(blob_.etag, blob_.n_bytes);
  }

  std::string hash() { return digest_->hex(); }  // once

  void move_to(const fs::path& path) {
    check(fsync(file_) == 0);  // or a crash leaves a name without its content
    fs::rename(path_, path);
  }

 private:
  void check(bool ok) const { require(ok, "{}: {}", path_.string(), std::strerror(errno)); }

  fs::path path_;
  const Remote::Blob& blob_;
  std::unique_ptr<Digest> digest_;
  int file_ = -1;
  int64_t n_bytes_ = 0;
};

}  // namespace

Remote::Remote(std::string endpoint, std::string token, std::string certificates, ModelName name)
    : endpoint_(std::move(endpoint)),
      has_token_(!token.empty()),
      name_(std::move(name)),
      http_(std::move(token), std::move(certificates)) {}

template <class Try>
Response Remote::persist(const std::string& url, const Try& attempt) {
  for (int n_tries = 1;; ++n_tries) {
    bool moved = false;  // brought something before it broke off
    Response response = attempt(moved);
    if (response.failure.empty() && response.status >= 200 && response.status < 400)
      return response;
    if (moved) n_tries = 0;
    if (!response.may_pass || n_tries >= kTries) explain(response, url);
    // At once first, then 1, 2, 4 seconds later.
    if (n_tries > 1) std::this_thread::sleep_for(std::chrono::seconds(1 << (n_tries - 2)));
  }
}

Remote::Listing Remote::list() {
  const std::string url = fmt::format("{}/api/models/{}/revision/{}?blobs=true", endpoint_,
                                      name_.repo, Http::escaped(name_.revision));
  const Response response = persist(url, [&](bool&) { return http_.get(url); });
  const Json json = parse_json(response.body, url);
  const Fields fields(json, url);
  Listing listing{fields.string("sha"), {}};
  require(is_relative_path(listing.commit) && listing.commit.find('/') == std::string::npos,
          "{}: field \"sha\" is {}, expected a commit", url, shown(listing.commit));
  const Json& siblings = fields.at("siblings");
  require(siblings.is_array(), "{}: field \"siblings\" is not a list", url);
  for (const Json& sibling : siblings) {
    const Fields file(sibling, url + ": siblings");
    // What cannot be a file below the snapshot is none of the model's.
    if (const std::string path = file.string("rfilename"); is_relative_path(path))
      listing.files.push_back({path, file.integer("size", 0, INT64_MAX, 0)});
  }
  return listing;
}

Remote::Blob Remote::blob(const std::string& commit, const RepoFile& file) {
  const std::string url =
      fmt::format("{}/{}/resolve/{}{}", endpoint_, name_.repo, commit, escaped_path(file.path));
  const Response response = persist(url, [&](bool&) { return http_.head(url); });
  // Of a large file the hub says what it is, of a small one the file's own answer does.
  const std::string linked = response.header("x-linked-etag");
  const std::string size = response.header("x-linked-size");
  Blob blob{url, unquoted(linked.empty() ? response.header("etag") : linked),
            number(size.empty() ? response.header("content-length") : size, file.n_bytes)};
  try {
    Digest(blob.etag, blob.n_bytes);
  } catch (const Error& error) {
    fail("{}: {}", url, error.what());
  }
  return blob;
}

void Remote::fetch(const Blob& blob, const fs::path& path,
                   const std::function<void(int64_t)>& on_bytes) {
  const fs::path aside = path.string() + ".incomplete";
  Part part(aside, blob);
  int64_t inherited = part.n_bytes();  // by whoever was here before
  for (;;) {
    persist(blob.url, [&](bool& moved) {
      on_bytes(part.n_bytes());
      if (part.n_bytes() == blob.n_bytes) {
        Response there;
        there.status = 200;
        return there;
      }
      const int64_t begin = part.n_bytes();
      bool first = true;
      Response response =
          http_.get(blob.url, begin, [&](const Response& so_far, std::string_view piece) {
            const bool goes_on =
                so_far.status == 206 &&
                so_far.header("content-range").starts_with(fmt::format("bytes {}-", begin));
            if (std::exchange(first, false) && begin > 0 && !goes_on) {
              part.clear();  // all of it comes again
              inherited = 0;
            }
            part.add(piece);
            moved = true;
            on_bytes(part.n_bytes());
          });
      if (response.failure.empty() && response.status < 300 && part.n_bytes() < blob.n_bytes) {
        response.failure = "the file ended early";
        response.may_pass = true;
      }
      return response;
    });
    const std::string hash = part.hash();
    if (hash == blob.etag) break;
    part.clear();
    // The fault of the part that was there before, perhaps.
    require(std::exchange(inherited, 0) > 0,
            "{}: its hash is {}, and the hub says {}: it was damaged or changed on the way; what "
            "came was thrown away",
            blob.url, hash, blob.etag);
  }
  part.move_to(path);
}

void Remote::explain(const Response& response, const std::string& url) const {
  const std::string page = endpoint_ + "/" + name_.repo;
  const std::string code = response.header("x-error-code");
  const std::string log_in = fmt::format(
      "make a token at {}/settings/tokens and put it into HF_TOKEN (or: hf auth login)", endpoint_);
  if (response.status == 401 || response.status == 403) {
    if (code == "GatedRepo" && !has_token_)
      fail("{} is given to those only who accepted its terms: do so at {}, then {}", name_.repo,
           page, log_in);
    if (code == "GatedRepo" || response.status == 403)
      fail(
          "{} is not given to the owner of this token: accept its terms at {}, or use a token that "
          "may read it",
          name_.repo, page);
    if (has_token_)
      fail("{} does not know {}, or does not take the token of HF_TOKEN: check both", endpoint_,
           name_.repo);
    fail("{} has no public model {}: check the name; if it is private, {}", endpoint_, name_.repo,
         log_in);
  }
  if (response.status == 404 && code == "RevisionNotFound")
    fail("{} has no revision {}: see {}/tree/main", name_.repo, name_.revision, page);
  if (response.status == 404 && code == "EntryNotFound") fail("{}: there is no such file", url);
  if (response.status == 404)
    fail("{} has no model {}, and there is no such path here: check the name", endpoint_,
         name_.repo);
  if (response.status == 429) {
    const int64_t wait_s = number(response.header("retry-after"), 0);
    fail("{} gets too many requests from here: try again in {}{}", endpoint_,
         wait_s > 0 ? fmt::format("{} seconds", wait_s) : "a few minutes",
         has_token_ ? "" : "; more are allowed with a token: " + log_in);
  }
  const std::string what = !response.failure.empty()
                               ? response.failure
                               : fmt::format("it answered with status {}", response.status);
  if (url.find("/api/models/") != std::string::npos)
    fail("{}: {} (there is no path {} here, so the hub was asked for a model of this name)", url,
         what, name_.repo);
  fail("{}: {}; what has come is kept, and the same command goes on from there", url, what);
}

}  // namespace ei::hub
