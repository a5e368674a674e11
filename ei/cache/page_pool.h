#pragma once

#include <memory>
#include <vector>

#include "ei/ops/buffer.h"
#include "ei/ops/host_memory.h"

namespace ei {

class PagePool;

// One page of K and V rows. Shared by every cache that holds it; goes back to its pool with the
// last.
class Page {
 public:
  Page(PagePool& pool, void* data) : pool_(pool), data_(data) {}
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const;

 private:
  PagePool& pool_;
  void* data_;
};
using PageRef = std::shared_ptr<const Page>;

// Pages of one size, cut from large slabs. A freed page gives its physical memory back at once
// (Backend::discard): a compressed cache really is smaller. Must outlive its pages.
class PagePool {
 public:
  PagePool(Backend& backend, int64_t page_bytes);
  // As many as fit `bytes` of the host, all of which are taken now and kept: to make memory that a
  // device copies from takes longer than to copy it.
  PagePool(HostMemory& host, int64_t page_bytes, int64_t bytes);

  // Throws Error when the device has no memory for another slab, or all pages of the host are out.
  PageRef take();

  int64_t page_bytes() const { return page_bytes_; }
  int64_t bytes_in_use() const { return n_in_use_ * page_bytes_; }
  int64_t n_free() const { return std::ssize(free_); }  // without another slab

 private:
  friend class Page;
  void give_back(void* data) noexcept;

  void cut(void* slab, int64_t n);

  Backend* backend_ = nullptr;  // null: of the host
  int64_t page_bytes_;
  int64_t n_in_use_ = 0;
  std::vector<Buffer> slabs_;
  HostBuffer host_;
  std::vector<void*> free_;
};

inline int64_t Page::bytes() const { return pool_.page_bytes(); }

}  // namespace ei
