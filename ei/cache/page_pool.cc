#include "ei/cache/page_pool.h"

#include <algorithm>

namespace ei {
namespace {

constexpr int64_t kSlabBytes = int64_t{32} << 20;

}  // namespace

Page::~Page() { pool_.give_back(data_); }

PagePool::PagePool(Backend& backend, int64_t page_bytes)
    : backend_(backend), page_bytes_(page_bytes) {}

PageRef PagePool::take() {
  if (free_.empty()) {
    const int64_t n = std::max<int64_t>(1, kSlabBytes / page_bytes_);
    slabs_.emplace_back(backend_, n * page_bytes_);
    // give_back() must not throw: room for every page there is.
    free_.reserve(slabs_.size() * static_cast<size_t>(n));
    char* slab = static_cast<char*>(slabs_.back().data());
    for (int64_t i = n - 1; i >= 0; --i) free_.push_back(slab + i * page_bytes_);
  }
  auto page = std::make_shared<const Page>(*this, free_.back());
  free_.pop_back();
  ++n_in_use_;
  return page;
}

void PagePool::give_back(void* data) noexcept {
  backend_.discard(data, page_bytes_);
  free_.push_back(data);
  --n_in_use_;
}

}  // namespace ei
