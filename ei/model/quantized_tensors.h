#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ei/io/tensor_info.h"
#include "ei/model/config.h"
#include "ei/ops/tensor.h"

namespace ei {

// A matrix that a checkpoint has as numbers of 4 or 8 bits with scales beside them, in the smallest
// format of ei/ops that holds its values exactly: whole numbers of 4 bits without zero points
// become Q4_0, with them Q5_0; those of 8 bits, and where a half does not hold the scales, INT8;
// floats of 8 bits FP8.
struct QuantizedTensor {
  const void* data = nullptr;  // of its numbers in the file
  WeightFormat format = WeightFormat::kQ4_0;
  // Column j of the blocks is the checkpoint's column order[j]; empty: j. By act-order columns of
  // one scale are apart.
  std::vector<int32_t> order;
  // Writes rows [first, last), from any thread.
  std::function<void(int64_t first, int64_t last, char* to)> write;
};

// A module's tensor by the end of its name (".qweight"), or nullptr.
using FindTensor = std::function<const TensorEntry*(std::string_view suffix)>;

// The matrix [rows, cols] of a module, by the tensors that the scheme has for it; nothing if there
// are none, as for modules that the checkpoint leaves as they are. They are:
//   fp8, compressed-tensors   weight F8_E4M3, and weight_scale_inv or weight_scale: one, one a row,
//                             or one for 128 rows by 128 columns
//   compressed-tensors        weight I8, weight_scale, or weight_packed, weight_scale,
//                             weight_zero_point, weight_g_idx
//   awq                       qweight, qzeros, scales
//   gptq                      qweight, qzeros, scales, g_idx
// What `find` gives must live as long as the result. Throws Error naming file and tensor for other
// types and shapes, groups that are not whole blocks of 32, and numbers of 8 bits with zero points.
std::optional<QuantizedTensor> find_quantized(const Quantization& scheme, const FindTensor& find,
                                              const std::string& module, int64_t rows,
                                              int64_t cols);

}  // namespace ei
