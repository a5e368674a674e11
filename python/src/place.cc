#include "python/src/place.h"

#include <map>
#include <memory>

#include "ei/cpu/backend.h"

namespace ei::python {
namespace {

// They are never destroyed: at the end of a program the GPU's driver may be gone before.
Backend& shared_backend(const Place& place) {
  static auto& backends = *new std::map<std::pair<int, bool>, std::unique_ptr<Backend>>;
  std::unique_ptr<Backend>& backend = backends[{place.gpu, place.bf16}];
  if (!backend)
    backend = place.on_gpu() ? make_cuda_backend(Math::kBF16, nullptr, place.gpu)
                             : make_cpu_backend(0, place.bf16 ? Math::kBF16 : Math::kF32);
  return *backend;
}

}  // namespace

std::mutex& Turn::mutex() {
  static std::mutex mutex;
  return mutex;
}

Turn::Turn(const Place& place) : guard_(mutex()), backend_(shared_backend(place)) {
  if (place.on_gpu()) stream_.emplace(backend_, reinterpret_cast<void*>(place.stream));
}

void expect_place(const Place& place, const char* what, int device_type, int device_id) {
  require(place.on_gpu() ? device_type == nb::device::cuda::value && device_id == place.gpu
                         : device_type == nb::device::cpu::value,
          "{} is on device {} of DLPack's type {}, expected {} of type {}", what, device_id,
          device_type, place.on_gpu() ? place.gpu : 0,
          place.on_gpu() ? nb::device::cuda::value : nb::device::cpu::value);
}

Act act(const Place& place, const char* what, const Rows& rows) {
  expect_place(place, what, rows.device_type(), rows.device_id());
  const nb::dlpack::dtype type = rows.dtype();
  const auto code = place.on_gpu() ? nb::dlpack::dtype_code::Bfloat : nb::dlpack::dtype_code::Float;
  require(type.code == static_cast<uint8_t>(code) && type.bits == (place.on_gpu() ? 16 : 32),
          "{} has numbers of {} bits of DLPack's type {}, expected {}", what, type.bits, type.code,
          place.on_gpu() ? "bfloat16" : "float32");
  return {const_cast<void*>(static_cast<const void*>(rows.data())),
          static_cast<int64_t>(rows.shape(0)), static_cast<int64_t>(rows.shape(1) * rows.shape(2)),
          type.bits / 8};
}

void expect_rows(const char* what, const Rows& rows, size_t n, size_t heads, size_t d) {
  require(rows.shape(0) == n && rows.shape(1) == heads && rows.shape(2) == d,
          "{} is [{}, {}, {}], expected [{}, {}, {}]: tokens, heads, head_dim", what, rows.shape(0),
          rows.shape(1), rows.shape(2), n, heads, d);
}

}  // namespace ei::python
