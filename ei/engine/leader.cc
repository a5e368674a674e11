#include "ei/engine/leader.h"

#include <cstring>
#include <map>
#include <type_traits>

#include "ei/base/fail.h"
#include "ei/engine/scheduler.h"

namespace ei {
namespace {

// A sequence by what rank 0 calls it.
using Id = uint64_t;
Id id_of(const Sequence* sequence) { return reinterpret_cast<Id>(sequence); }

enum class Order : uint8_t { kBegin, kExecute, kEnd, kGoHome };

// What stands behind Order::kBegin, before the prompt's tokens: all of a request but how tokens are
// drawn and where the answer ends.
struct Begin {
  Id id = 0;
  PrefillPolicy prefill;
  DecodePolicy decode;
  int64_t max_tokens = 0;
  bool score_prompt = false, reuse = true;
  SequenceOptions::Pooling pooling = SequenceOptions::Pooling::kNone;
};

struct End {
  Id id = 0;
  bool failed = false;
};

struct Read {
  Id id = 0;  // 0: nobody
  int64_t max_rows = 0, n_layers = 0;
};

class Writer {
 public:
  explicit Writer(Order order) { add(order); }
  template <class T>
  void add(const T& value) {
    add_all(std::span(&value, 1));
  }
  template <class T>
  void add_all(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t at = bytes.size();
    bytes.resize(at + values.size_bytes());
    if (!values.empty()) std::memcpy(bytes.data() + at, values.data(), values.size_bytes());
  }
  void add_list(const std::vector<Sequence*>& sequences) {
    add(sequences.size());
    for (const Sequence* sequence : sequences) add(id_of(sequence));
  }
  std::vector<std::byte> bytes;
};

class Reader {
 public:
  explicit Reader(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  template <class T>
  T take() {
    T value;
    take_all(std::span(&value, 1));
    return value;
  }
  template <class T>
  void take_all(std::span<T> values) {
    require(at_ + values.size_bytes() <= bytes_.size(), "an order of rank 0 is cut short");
    if (!values.empty()) std::memcpy(values.data(), bytes_.data() + at_, values.size_bytes());
    at_ += values.size_bytes();
  }
  std::vector<int32_t> take_tokens() {
    std::vector<int32_t> tokens((bytes_.size() - at_) / sizeof(int32_t));
    take_all(std::span(tokens));
    return tokens;
  }

 private:
  std::vector<std::byte> bytes_;
  size_t at_ = 0;
};

Reader next_order(Communicator& ranks) {
  std::vector<std::byte> bytes(of_first(ranks, size_t{0}));
  ranks.broadcast(bytes);
  return Reader(std::move(bytes));
}

// Throws what a sequence of the step has failed with, unless all ranks have seen it alike.
void check_in_step(const StepPlan& plan) {
  const auto check = [](const Sequence* sequence) {
    if (sequence == nullptr || !sequence->error()) return;
    try {
      std::rethrow_exception(sequence->error());
    } catch (const NothingLeft&) {
    }
  };
  for (const auto* sequences : {&plan.compress, &plan.write, &plan.read.followers})
    std::ranges::for_each(*sequences, check);
  check(plan.read.sequence);
}

}  // namespace

// Ranks that have ended are told nothing; the next step finds out.
void Leader::tell(const std::vector<std::byte>& order) noexcept try {
  std::vector<std::byte> bytes = order;
  of_first(ranks_, bytes.size());
  ranks_.broadcast(bytes);
} catch (const Error&) {
}

Leader::~Leader() {
  if (ranks_.size() > 1) tell(Writer(Order::kGoHome).bytes);
}

void Leader::begin(const Sequence& sequence, const Request& request,
                   const SequenceOptions& options) {
  if (ranks_.size() == 1) return;
  Writer order(Order::kBegin);
  order.add(Begin{.id = id_of(&sequence),
                  .prefill = request.prefill,
                  .decode = request.decode,
                  .max_tokens = request.max_tokens,
                  .score_prompt = options.score_prompt,
                  .reuse = options.reuse,
                  .pooling = options.pooling});
  order.add_all(std::span<const int32_t>(request.tokens));
  tell(order.bytes);
  require(sum_of_all(ranks_, 0) == 0, "another rank has no memory for the request");
}

void Leader::execute(Batch& batch, const StepPlan& plan) {
  if (ranks_.size() > 1) {
    Writer order(Order::kExecute);
    for (const auto* sequences : {&plan.compress, &plan.write, &plan.read.followers})
      order.add_list(*sequences);
    order.add(Read{id_of(plan.read.sequence), plan.read.max_rows, plan.read.n_layers});
    tell(order.bytes);
  }
  batch.execute(plan);
  if (ranks_.size() > 1) {
    try {
      check_in_step(plan);
    } catch (...) {
      ranks_.abort(text_of(std::current_exception()));
    }
  }
}

void Leader::end(const Sequence& sequence) noexcept {
  if (ranks_.size() == 1) return;
  Writer order(Order::kEnd);
  order.add(End{id_of(&sequence), sequence.error() != nullptr});
  tell(order.bytes);
}

void Scheduler::follow(Engine& engine, const SchedulerOptions& given) {
  Engine::Impl& e = engine.impl();
  const std::lock_guard lock(e.mutex);
  Communicator& ranks = e.backend->ranks();
  const SchedulerOptions options = with_defaults(given, e);
  PagePool pool(*e.backend, page_bytes(options, e));
  const std::unique_ptr<PagePool> host = host_pool(options, e);
  PrefixCache prefixes(*e.backend, options.prefix_bytes, host.get());
  Batch batch(e, options.max_sequences, chunk_rows(options, e), Sequence::kScoreRows);

  struct Followed {
    std::optional<Context> context;
    std::optional<Sequence> sequence;
  };
  std::map<Id, Followed> followed;
  const auto begin = [&](Reader& order) {
    const auto told = order.take<Begin>();
    Request request;
    request.tokens = order.take_tokens();
    request.prefill = told.prefill;
    request.decode = told.decode;
    request.sampling = SamplingParams{};
    request.max_tokens = told.max_tokens;
    request.ignore_eos = true;
    SequenceOptions sequence_options{.reuse = told.reuse, .pooling = told.pooling};
    // Logits are made together; what is reported of them is rank 0's.
    if (told.score_prompt) sequence_options.on_logits = [](const Act&, int64_t) {};
    Followed& f = followed[told.id];
    try {
      f.context.emplace(e, pool, &prefixes, room_for(request, e));
      f.sequence.emplace(e, *f.context, request, sequence_options);
    } catch (const Error&) {
      f.sequence.reset();
    }
    const int n_failed = sum_of_all(ranks, f.sequence ? 0 : 1);
    if (n_failed > 0) followed.erase(told.id);
  };
  const auto execute = [&](Reader& order) {
    const auto sequence_of = [&](Id id) { return id == 0 ? nullptr : &*followed.at(id).sequence; };
    StepPlan plan;
    for (auto* sequences : {&plan.compress, &plan.write, &plan.read.followers})
      for (auto n = order.take<size_t>(); n > 0; --n)
        sequences->push_back(sequence_of(order.take<Id>()));
    const auto read = order.take<Read>();
    plan.read.sequence = sequence_of(read.id);
    plan.read.max_rows = read.max_rows;
    plan.read.n_layers = read.n_layers;
    batch.execute(plan);
    check_in_step(plan);
  };
  const auto end = [&](Reader& order) {
    const auto told = order.take<End>();
    Sequence& sequence = *followed.at(told.id).sequence;
    batch.drop(sequence);
    if (!told.failed && !sequence.finished()) sequence.cancel();
    followed.erase(told.id);
  };

  while (true) {
    Reader order = next_order(ranks);
    switch (order.take<Order>()) {
      case Order::kBegin:
        begin(order);
        break;
      case Order::kExecute:
        execute(order);
        break;
      case Order::kEnd:
        end(order);
        break;
      case Order::kGoHome:
        return;
    }
  }
}

}  // namespace ei
