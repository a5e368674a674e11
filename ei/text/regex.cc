#include "ei/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "ei/base/fail.h"
#include "ei/base/utf8.h"

namespace ei {
namespace {

// The regular expressions of tokenizers take a few steps a character; a hostile one in a model's
// file is stopped in well under a second.
constexpr uint32_t kMaxSteps = 50'000'000;
constexpr size_t kMaxStackBytes = 8u << 20;
constexpr size_t kMaxPatternBytes = 64u << 10;

std::string message(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

template <auto free>
struct Free {
  template <class T>
  void operator()(T* p) const {
    free(p);
  }
};

struct SplitRegex::Impl {
  std::unique_ptr<pcre2_code, Free<pcre2_code_free>> code;
  std::string where;
  Behavior behavior;
  bool invert;
};

SplitRegex::SplitRegex(std::string_view pattern, std::string_view where, Behavior behavior,
                       bool invert) {
  require(pattern.size() <= kMaxPatternBytes, "{}: a pattern of {} bytes, at most {} are read",
          where, pattern.size(), kMaxPatternBytes);
  int error = 0;
  size_t offset = 0;
  auto impl = std::make_unique<Impl>();
  impl->where = where;
  impl->behavior = behavior;
  impl->invert = invert;
  impl->code.reset(pcre2_compile(units(pattern), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 nullptr));
  require(impl->code != nullptr, "{}: the regular expression {} is not valid at byte {}: {}", where,
          pattern, offset, message(error));
  // Without a JIT for this machine the interpreter does the same work more slowly.
  pcre2_jit_compile(impl->code.get(), PCRE2_JIT_COMPLETE);
  impl_ = std::move(impl);
}

SplitRegex::~SplitRegex() = default;
SplitRegex::SplitRegex(SplitRegex&&) noexcept = default;
SplitRegex& SplitRegex::operator=(SplitRegex&&) noexcept = default;

std::vector<std::string_view> SplitRegex::split(std::string_view text) const {
  // To PCRE2, U+180E is white space, which it was until Unicode 6.3; to Oniguruma it is a format
  // character like U+200B, which is as long.
  constexpr std::string_view kOldSpace = "\u180E", kFormat = "\u200B";
  std::string copy;
  std::string_view subject = text;
  for (size_t i = 0; (i = subject.find(kOldSpace, i)) != subject.npos;) {
    if (copy.empty()) copy = text;
    copy.replace(i, kFormat.size(), kFormat);
    subject = copy;
  }

  const std::unique_ptr<pcre2_match_data, Free<pcre2_match_data_free>> match(
      pcre2_match_data_create_from_pattern(impl_->code.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, Free<pcre2_match_context_free>> context(
      pcre2_match_context_create(nullptr));
  const std::unique_ptr<pcre2_jit_stack, Free<pcre2_jit_stack_free>> stack(
      pcre2_jit_stack_create(32u << 10, kMaxStackBytes, nullptr));
  require(match && context && stack, "{}: out of memory", impl_->where);
  pcre2_set_match_limit(context.get(), kMaxSteps);
  pcre2_set_heap_limit(context.get(), kMaxStackBytes >> 10);  // in KiB
  pcre2_jit_stack_assign(context.get(), nullptr, stack.get());

  std::vector<std::string_view> pieces;
  size_t done = 0;
  bool after_match = false;
  const auto cut = [&](size_t at, bool is_match) {
    if (at == done) return;
    is_match ^= impl_->invert;
    const auto joins = [&] {
      switch (impl_->behavior) {
        case Behavior::kContiguous:
          return is_match == after_match;
        case Behavior::kMergedWithPrevious:
          return is_match && !after_match;
        case Behavior::kMergedWithNext:
          return after_match && !is_match;
        default:
          return false;
      }
    };
    if (!pieces.empty() && joins())
      pieces.back() = {pieces.back().data(), pieces.back().size() + at - done};
    else if (impl_->behavior != Behavior::kRemoved || !is_match)
      pieces.push_back(text.substr(done, at - done));
    after_match = is_match;
    done = at;
  };
  for (size_t at = 0; at < text.size();) {
    const int n = pcre2_match(impl_->code.get(), units(subject), subject.size(), at,
                              PCRE2_NO_UTF_CHECK, match.get(), context.get());
    if (n == PCRE2_ERROR_NOMATCH) break;
    require(n > 0, "{}: the regular expression gave up at byte {} of the text: {}", impl_->where,
            at, message(n));
    const size_t* ends = pcre2_get_ovector_pointer(match.get());
    require(done <= ends[0] && ends[0] <= ends[1], "{}: matches of the regular expression overlap",
            impl_->where);
    cut(ends[0], /*is_match=*/false);
    cut(ends[1], /*is_match=*/true);
    at = ends[1];
    if (ends[0] == ends[1] && at < text.size()) at += decode_utf8(text.substr(at)).n_bytes;
  }
  cut(text.size(), /*is_match=*/false);
  return pieces;
}

}  // namespace ei
