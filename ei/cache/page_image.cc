#include "ei/cache/page_image.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "ei/base/fail.h"
#include "ei/io/checksum.h"
#include "ei/io/safetensors.h"

namespace ei {
namespace {

constexpr const char* kFormat = "entropyinfer pages 2";

struct Range {
  int64_t begin, end;
};

// The bytes of a page that n rows take, with their scales and bounds: neighbours are one range. The
// rest is left out of an image, as memory is handed on with what was in it before.
std::vector<Range> used(const PageLayout& layout, int64_t n_rows) {
  const int64_t row = layout.row_bytes(), scales = layout.first_scale() * row;
  const int64_t n_bounds =
      layout.block == 0 ? 0 : (n_rows + layout.block - 1) / layout.block * layout.bound_rows();
  std::vector<Range> ranges;
  const auto add = [&](int64_t begin, int64_t bytes) {
    if (bytes == 0) return;
    if (ranges.empty() || ranges.back().end != begin) ranges.push_back({begin, begin});
    ranges.back().end += bytes;
  };
  add(0, n_rows * row);
  add(layout.first_value() * row, n_rows * row);
  add(scales, n_rows * layout.scale_bytes());
  add(scales + layout.rows * layout.scale_bytes(), n_rows * layout.scale_bytes());
  add(layout.first_lowest() * row, n_bounds * row);
  add(layout.first_highest() * row, n_bounds * row);
  return ranges;
}

int64_t bytes_of(std::span<const Range> ranges) {
  int64_t bytes = 0;
  for (const Range& range : ranges) bytes += range.end - range.begin;
  return bytes;
}

template <class T>
std::vector<T> values_of(const TensorMap& tensors, std::string_view name, std::string_view dtype,
                         std::string_view where) {
  const auto it = tensors.find(name);
  require(it != tensors.end() && it->second.dtype == dtype, "{}: has no tensor \"{}\" of {}", where,
          name, dtype);
  std::vector<T> values(it->second.data.size() / sizeof(T));
  if (!values.empty())
    std::memcpy(values.data(), it->second.data.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace

std::vector<std::byte> make_image(const PageImage& image, Backend& backend,
                                  const PageLayout& layout, std::span<const PageRef> pages,
                                  std::vector<std::byte> bytes) {
  const std::vector<Range> ranges = used(layout, std::ssize(image.tokens));
  const int64_t page_bytes = bytes_of(ranges);
  const auto n_pages = std::ssize(pages);
  const auto room = [](const void* data, size_t bytes) {
    return std::span(static_cast<const std::byte*>(data), bytes);
  };
  const auto n_tokens = std::ssize(image.tokens);
  const std::pair<std::string, TensorInfo> tensors[] = {
      {"tokens", {"I32", {n_tokens}, std::as_bytes(std::span(image.tokens))}},
      {"entropies",
       {"F32", {std::ssize(image.entropies)}, std::as_bytes(std::span(image.entropies))}},
      {"pages",
       {"U8", {n_pages, page_bytes}, room(nullptr, static_cast<size_t>(n_pages * page_bytes))}},
      {"checksum", {"U64", {1}, room(nullptr, sizeof(uint64_t))}}};
  const std::string header =
      safetensors_header(tensors, {{"asked", fmt::format("{:x}", image.asked)},
                                   {"format", kFormat},
                                   {"model", image.model},
                                   {"parent", fmt::format("{:016x}", image.parent)},
                                   {"policy", image.policy}});
  size_t size = header.size();
  for (const auto& [name, tensor] : tensors) size += tensor.data.size();
  bytes.resize(size);
  std::byte* to = bytes.data();
  const auto put = [&](const void* data, size_t n) {
    if (n > 0) std::memcpy(to, data, n);
    to += n;
  };
  put(header.data(), header.size());
  put(image.tokens.data(), image.tokens.size() * sizeof(int32_t));
  put(image.entropies.data(), image.entropies.size() * sizeof(float));
  for (const PageRef& page : pages)
    for (const auto& [begin, end] : ranges) {
      backend.copy_out(to, static_cast<const std::byte*>(page->data()) + begin, end - begin);
      to += end - begin;
    }
  return bytes;
}

void seal(std::span<std::byte> image) {
  const auto rest = image.first(image.size() - sizeof(uint64_t));
  const uint64_t sum = checksum(rest);
  std::memcpy(image.data() + rest.size(), &sum, sizeof sum);
}

PageImage parse_image(std::span<const std::byte> bytes, std::string_view where) {
  uint64_t sum = 0;
  require(bytes.size() > sizeof sum, "{}: {} bytes, too short for a page", where, bytes.size());
  const auto rest = bytes.first(bytes.size() - sizeof sum);
  std::memcpy(&sum, bytes.data() + rest.size(), sizeof sum);
  require(checksum(rest) == sum, "{}: is damaged: its checksum is not that of its bytes", where);

  Metadata metadata;
  const TensorMap tensors = parse_safetensors(bytes, where, &metadata);
  const auto text = [&](std::string_view name) -> const std::string& {
    const auto it = metadata.find(name);
    require(it != metadata.end(), "{}: __metadata__ has no \"{}\"", where, name);
    return it->second;
  };
  require(text("format") == kFormat, "{}: \"format\" is \"{}\", expected \"{}\"", where,
          text("format"), kFormat);
  PageImage image;
  image.model = text("model");
  image.policy = text("policy");
  const auto number = [&](std::string_view name, auto& value) {
    const std::string& digits = text(name);
    const char* const last = digits.data() + digits.size();
    const auto [end, error] = std::from_chars(digits.data(), last, value, 16);
    require(error == std::errc() && end == last, "{}: \"{}\" is \"{}\", expected a number", where,
            name, digits);
  };
  number("parent", image.parent);
  number("asked", image.asked);
  require(image.asked >= 0, "{}: \"asked\" is {}, expected 0 or more", where, image.asked);
  image.tokens = values_of<int32_t>(tensors, "tokens", "I32", where);
  image.entropies = values_of<float>(tensors, "entropies", "F32", where);
  const auto pages = tensors.find("pages");
  require(pages != tensors.end() && pages->second.dtype == "U8",
          "{}: has no tensor \"pages\" of U8", where);
  image.pages = pages->second.data;
  return image;
}

void check_pages(const PageImage& image, const KvShape& shape, std::string_view where) {
  const auto n_tokens = std::ssize(image.tokens);
  require(n_tokens > 0 && n_tokens <= shape.layout.rows, "{}: {} tokens, expected at most {}",
          where, n_tokens, shape.layout.rows);
  const int64_t n_pages = shape.n_layers * shape.n_kv_heads;
  const int64_t bytes = bytes_of(used(shape.layout, n_tokens));
  require(std::ssize(image.pages) == n_pages * bytes,
          "{}: \"pages\" has {} bytes, expected {} of {}", where, image.pages.size(), n_pages,
          bytes);
}

std::vector<PageRef> take_pages(const PageImage& image, Backend& backend, const KvShape& shape,
                                PagePool& pool) {
  const std::vector<Range> ranges = used(shape.layout, std::ssize(image.tokens));
  const std::byte* from = image.pages.data();
  std::vector<PageRef> pages;
  for (int64_t i = 0; i < shape.n_layers * shape.n_kv_heads; ++i) {
    pages.push_back(pool.take());
    for (const auto& [begin, end] : ranges) {
      backend.copy_in(static_cast<std::byte*>(pages.back()->data()) + begin, from, end - begin);
      from += end - begin;
    }
  }
  return pages;
}

}  // namespace ei
