#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ei/cache/kv_cache.h"

namespace ei {

// One entry of a prefix cache as bytes, which mean the same in memory and in a file: a safetensors
// file of tokens [n], entropies [n_segments * width], pages [n_layers * n_kv_heads, page_bytes] and
// a checksum of all before it, which is 8 bytes and ends it. __metadata__ says what they are of.
struct PageImage {
  std::string model;    // whose they are, and how its cache stores them: any text
  std::string policy;   // that they were read under
  uint64_t parent = 0;  // key of the entry before
  int64_t asked = 0;    // see PrefixCache::remember()
  std::vector<int32_t> tokens;
  std::vector<float> entropies;
  std::span<const std::byte> pages;  // in the bytes that it was parsed from
};

// The bytes of an image whose pages, one for each layer and head, are copied from the device;
// image.pages is not looked at. What they hold beyond their tokens is left out. The checksum is
// missing: seal() adds it, in another thread perhaps. `bytes` is memory to be used.
std::vector<std::byte> make_image(const PageImage& image, Backend& backend,
                                  const PageLayout& layout, std::span<const PageRef> pages,
                                  std::vector<std::byte> bytes = {});
void seal(std::span<std::byte> image);

// Throws Error naming `where` when the bytes are no such image, or damaged anywhere.
PageImage parse_image(std::span<const std::byte> bytes, std::string_view where);

// Throws Error unless its pages are of this shape.
void check_pages(const PageImage& image, const KvShape& shape, std::string_view where);
// Fresh pages with what the image's hold. Throws Error when memory is short.
std::vector<PageRef> take_pages(const PageImage& image, Backend& backend, const KvShape& shape,
                                PagePool& pool);

}  // namespace ei
