#include <cmath>

#include "apps/eval/head_profile.h"
#include "python/src/model.h"
#include "python/src/watch.h"

namespace ei::python {
namespace {

using eval::Profile;

// A profile's numbers, [n_layers, n_kv_heads, of each head]; `missing` where a layer is dense.
template <class T, class Get>
auto of_heads(const Profile& profile, size_t n, T missing, const Get& get) {
  std::vector<T> values;
  for (const auto& layer : profile.heads)
    for (const Profile::Head& head : layer)
      for (size_t i = 0; i < n; ++i) values.push_back(get(head, i, missing));
  return array<T, 3>(std::move(values), {profile.heads.size(), profile.heads[0].size(), n});
}

template <class T, class Get>
auto of_segments(const Profile& profile, T missing, const Get& get) {
  size_t n = 0;
  for (const auto& layer : profile.heads) n = std::max(n, layer[0].segments.size());
  return of_heads<T>(profile, n, missing, [&](const Profile::Head& head, size_t i, T none) {
    return i < head.segments.size() ? static_cast<T>(get(head.segments[i])) : none;
  });
}

nb::dict arrays(const Profile& profile) {
  using Segment = Profile::Segment;
  nb::dict out;
  out["segment"] = profile.segment;
  out["block"] = profile.block;
  out["entropy"] = of_segments<float>(profile, NAN, [](const Segment& s) { return s.entropy; });
  out["budget"] = of_segments<float>(profile, NAN, [](const Segment& s) { return s.budget; });
  out["blocks"] = of_segments<int64_t>(profile, -1, [](const Segment& s) { return s.blocks; });
  out["dense"] = of_segments<uint8_t>(profile, 1, [](const Segment& s) { return s.dense; });
  size_t n_distances = 0;
  for (const auto& layer : profile.heads)
    for (const Profile::Head& head : layer)
      n_distances = std::max(n_distances, head.kept_by_distance.size());
  out["kept_by_distance"] = of_heads<double>(
      profile, n_distances, NAN, [](const Profile::Head& head, size_t i, double none) {
        return i < head.kept_by_distance.size() ? head.kept_by_distance[i] : none;
      });
  out["votes"] = of_heads<double>(profile, size_t{Profile::kVoteBins}, NAN,
                                  [](const Profile::Head& head, size_t i, double none) {
                                    return i < head.votes.size() ? head.votes[i] : none;
                                  });
  return out;
}

nb::tuple profile(Model& self, const Array<const int32_t, 1>& tokens, const Policy* policy,
                  const nb::object& on_prefill) {
  const Request request = self.request(tokens, policy);
  const Profile result =
      Watch::run(nb::none(), on_prefill,
                 [&](Watch&, const Callbacks& callbacks, const std::stop_token& cancel) {
                   return eval::profile(self.engine(), request, callbacks, cancel);
                 });
  return nb::make_tuple(arrays(result), result.generation);
}

}  // namespace

void bind_profile(nb::module_& m) {
  m.def("profile", &profile, nb::arg("model"), nb::arg("tokens"), nb::arg("policy").none(),
        nb::arg("on_prefill").none());
}

}  // namespace ei::python
