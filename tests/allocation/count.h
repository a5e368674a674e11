#pragma once

#include <cstdint>

namespace ei::test {

// Whether this build can count: sanitizers bring allocators of their own.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define EI_COUNTS_ALLOCATIONS 0
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define EI_COUNTS_ALLOCATIONS 0
#endif
#if !defined(EI_COUNTS_ALLOCATIONS)
#define EI_COUNTS_ALLOCATIONS 1
#endif

// Heap allocations of this process so far, by any thread and any library.
int64_t n_allocations();

}  // namespace ei::test
