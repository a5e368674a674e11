#include "ei/cache/page_pool.h"

#include <algorithm>

#include "ei/base/fail.h"

namespace ei {
namespace {

constexpr int64_t kSlabBytes = int64_t{32} << 20;

}  // namespace

Page::~Page() { pool_.give_back(data_); }

PagePool::PagePool(Backend& backend, int64_t page_bytes)
    : backend_(&backend), page_bytes_(page_bytes) {}

PagePool::PagePool(HostMemory& host, int64_t page_bytes, int64_t bytes) : page_bytes_(page_bytes) {
  const int64_t n = bytes / page_bytes;
  if (n == 0) return;
  free_.reserve(static_cast<size_t>(n));
  host_ = HostBuffer(host, n * page_bytes);
  cut(host_.data(), n);
}

void PagePool::cut(void* slab, int64_t n) {
  for (int64_t i = n - 1; i >= 0; --i) free_.push_back(static_cast<char*>(slab) + i * page_bytes_);
}

PageRef PagePool::take() {
  if (free_.empty()) {
    require(backend_ != nullptr, "all pages of the host's memory are in use");
    const int64_t n = std::max<int64_t>(1, kSlabBytes / page_bytes_);
    slabs_.emplace_back(*backend_, n * page_bytes_);
    // give_back() must not throw: room for every page there is.
    free_.reserve(slabs_.size() * static_cast<size_t>(n));
    cut(slabs_.back().data(), n);
  }
  auto page = std::make_shared<const Page>(*this, free_.back());
  free_.pop_back();
  ++n_in_use_;
  return page;
}

void PagePool::give_back(void* data) noexcept {
  if (backend_ != nullptr) backend_->discard(data, page_bytes_);
  free_.push_back(data);
  --n_in_use_;
}

}  // namespace ei
