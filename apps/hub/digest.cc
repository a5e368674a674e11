#include "apps/hub/digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>

#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::hub {

struct Digest::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

Digest::Digest(std::string_view etag, int64_t n_bytes) : context_(std::make_unique<Context>()) {
  const bool is_hex = etag.find_first_not_of("0123456789abcdef") == etag.npos;
  require(is_hex && (etag.size() == 64 || etag.size() == 40),
          "its etag is {}, expected a SHA-256 or the id of git: what it is cannot be checked",
          shown(etag));
  const bool is_lfs = etag.size() == 64;
  require(context_->evp != nullptr &&
              EVP_DigestInit_ex(context_->evp, is_lfs ? EVP_sha256() : EVP_sha1(), nullptr) == 1,
          "OpenSSL has no {}", is_lfs ? "SHA-256" : "SHA-1");
  if (!is_lfs) add(fmt::format("blob {}", n_bytes) + '\0');
}

Digest::~Digest() = default;

void Digest::add(std::string_view bytes) {
  EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size());
}

std::string Digest::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> bytes;
  unsigned size = 0;
  EVP_DigestFinal_ex(context_->evp, bytes.data(), &size);
  std::string text;
  for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x}", bytes[i]);
  return text;
}

}  // namespace ei::hub
