// What the schedulers of all ranks have in common, and how those of this process are started.
#include <algorithm>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/engine/scheduler.h"
#include "ei/ops/host_memory.h"

namespace ei {
namespace {

void check_options(const SchedulerOptions& options, Communicator& ranks) {
  validate(options.prefill);
  require(!options.prefill.budget.rigid_whole_prompt,
          "a policy that looks at the whole prompt (rigid whole-prompt) cannot be read in chunks "
          "between other requests");
  require(options.max_sequences >= 1, "max-sequences is {}, expected 1 or more",
          options.max_sequences);
  require(ranks.size() == 1 || options.prefix_dir.empty(),
          "prefixes are kept in files by one rank alone: several hold a part of the cache each");
}

}  // namespace

SchedulerOptions Scheduler::with_defaults(SchedulerOptions options, const Engine::Impl& engine) {
  Communicator& ranks = engine.backend->ranks();
  check_options(options, ranks);
  const int64_t free = std::ranges::min(of_all(ranks, engine.backend->available_bytes()));
  if (options.kv_bytes == 0) options.kv_bytes = free / 2;
  if (options.prefix_bytes < 0) options.prefix_bytes = free / 4;
  HostMemory* const host = engine.backend->host_memory();
  require(
      host != nullptr || options.prefix_host_bytes <= 0,
      "pages are kept in the host's memory beside a GPU's; on a CPU there is no other than that "
      "of --prefix-memory");
  if (options.prefix_host_bytes < 0) {
    const int64_t own = host == nullptr ? 0 : host->available_bytes();
    options.prefix_host_bytes =
        std::min(kPrefixHostBytes, std::ranges::min(of_all(ranks, own)) / 4);
  }
  options.prefix_host_bytes /= ranks.size();
  return options;
}

int64_t Scheduler::chunk_rows(const SchedulerOptions& options, const Engine::Impl& engine) {
  const int64_t page = engine.page_rows(options.prefill);
  return (engine.options.chunk + page - 1) / page * page;
}

// With room for the paper's key bounds, whether or not the server's own policy wants any: requests
// may.
int64_t Scheduler::page_bytes(const SchedulerOptions& options, const Engine::Impl& engine) {
  PageLayout layout = engine.kv_shape(options.prefill, 0).layout;
  const bool bounds = options.prefill.estimate == Estimate::kBounds;
  layout.block = bounds ? options.prefill.block : PrefillPolicy{}.block;
  return layout.bytes();
}

std::unique_ptr<PagePool> Scheduler::host_pool(const SchedulerOptions& options,
                                               Engine::Impl& engine) {
  if (options.prefix_host_bytes == 0) return nullptr;
  return std::make_unique<PagePool>(*engine.backend->host_memory(), page_bytes(options, engine),
                                    options.prefix_host_bytes);
}

int64_t Scheduler::room_for(const Request& request, const Engine::Impl& engine) {
  return std::min(std::ssize(request.tokens) + std::max<int64_t>(0, request.max_tokens),
                  engine.model->config().max_positions);
}

std::jthread Scheduler::start_followers(const SchedulerOptions& options) const {
  if (!engine_.threads) return {};
  check_options(options, engine_.backend->ranks());  // before others wait for what does not come
  return std::jthread([&engine = engine_, options] {
    const auto follow_one = [&](const std::shared_ptr<Communicator>& rank) {
      try {
        follow(engine.others[static_cast<size_t>(rank->rank() - 1)], options);
      } catch (...) {
        rank->abort(text_of(std::current_exception()));
      }
    };
    try {
      engine.threads->run(follow_one, /*first=*/1);
    } catch (const Error&) {  // which ends rank 0's step as well
    }
  });
}

}  // namespace ei
