#include "ei/engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/engine/identity.h"
#include "ei/engine/memory_plan.h"

namespace ei {
namespace {

// So short that it needs none.
constexpr const char* kOutOfMemory = "out of memory";

double ms_between(std::chrono::steady_clock::time_point from,
                  std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

// Nobody is left to be told that a last callback failed.
void tell(const std::function<void(Outcome)>& on_end, Outcome outcome) noexcept {
  try {
    on_end(std::move(outcome));
  } catch (...) {
  }
}

void tell_failure(Outcome& outcome, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    outcome.error = kOutOfMemory;
  } catch (const NothingLeft& e) {
    outcome.error = e.what();
    outcome.is_asked_for = true;
  } catch (const std::exception& e) {
    outcome.error = e.what();
  } catch (...) {
    outcome.error = "unknown error";
  }
}

std::unique_ptr<PageStore> open_store(const SchedulerOptions& options) {
  if (options.prefix_dir.empty()) return nullptr;
  return std::make_unique<PageStore>(PageStore::Options{.directory = options.prefix_dir,
                                                        .max_bytes = options.prefix_disk_bytes,
                                                        .warn = options.on_warning});
}

}  // namespace

struct Scheduler::Active {
  explicit Active(Job j) : job(std::move(j)) {
    for (const int32_t token : job.request.tokens)
      hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001B3ull;  // FNV-1a
  }

  Job job;
  int64_t bytes = 0;                       // planned
  uint64_t hash = 0xCBF29CE484222325ull;   // of the prompt
  Clock::time_point since = Clock::now();  // waiting
  std::optional<Clock::time_point> started;
  std::optional<Context> context;
  std::optional<Sequence> sequence;
  const Active* leader = nullptr;  // reads the same prompt, from which this one goes on
  int64_t n_read = 0;              // of the prompt, as far as was told
  std::exception_ptr error;        // why there is no sequence

  bool over() const { return job.cancel.stop_requested() || Clock::now() >= job.deadline; }
  // Whether it could go on from what `other` reads.
  bool can_follow(const Active& other) const {
    const Request &mine = job.request, &theirs = other.job.request;
    return hash == other.hash && mine.tokens == theirs.tokens && mine.prefill == theirs.prefill &&
           !job.options.score_prompt && job.options.reuse &&
           job.options.pooling == SequenceOptions::Pooling::kNone &&
           Compressor::window_rows(mine.decode) <= Compressor::window_rows(theirs.decode);
  }
  Outcome outcome() const noexcept;
};

Outcome Scheduler::Active::outcome() const noexcept try {
  Outcome outcome;
  outcome.queue_ms = ms_between(since, started.value_or(Clock::now()));
  if (context) outcome.lost_prefix = context->lost_prefix();
  if (const std::exception_ptr failure = sequence ? sequence->error() : error) {
    tell_failure(outcome, failure);
  } else if (sequence) {
    outcome.generation = sequence->result();
  } else {
    outcome.generation.finish_reason = FinishReason::kCancelled;
  }
  return outcome;
} catch (...) {
  Outcome outcome;
  outcome.error = kOutOfMemory;
  return outcome;
}

Scheduler::Scheduler(Engine& engine, const SchedulerOptions& options)
    : engine_(engine.impl()),
      followers_(start_followers(options)),
      leader_(engine_.backend->ranks()),
      options_(with_defaults(options, engine_)),
      pool_(*engine_.backend, page_bytes(options_, engine_)),
      host_pool_(host_pool(options_, engine_)),
      store_(open_store(options_)),
      prefixes_(*engine_.backend, options_.prefix_bytes, host_pool_.get(), store_.get(),
                store_ ? cache_identity(engine_) : ""),
      batch_(engine_, options_.max_sequences, chunk_rows(options_, engine_), Sequence::kScoreRows),
      reader_(active_.end()) {
  const auto n = static_cast<size_t>(options_.max_sequences);
  plan_.compress.reserve(n);
  plan_.write.reserve(n);
  plan_.read.followers.reserve(n);
  stats_.kv_bytes_max = options_.kv_bytes;
  stats_.prefix_bytes_max = options_.prefix_bytes;
  stats_.prefix_host_bytes_max = options_.prefix_host_bytes;
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

Scheduler::~Scheduler() {
  cancel_all();
  drain();
  thread_.request_stop();
  thread_.join();
  engine_lock_ = std::unique_lock(engine_.mutex);
}

int64_t Scheduler::planned_bytes(const Request& request) const {
  const auto n_prompt = static_cast<int64_t>(request.tokens.size());
  const int64_t n_total =
      std::min(n_prompt + request.max_tokens, engine_.model->config().max_positions);
  return plan_memory(engine_, request.prefill, request.decode,
                     engine_.kv_shape(request.prefill, n_total), pool_.page_bytes(), n_prompt,
                     n_total, prefixes_.keeps_anything())
      .sequence();
}

// Everything that can be known of a request before it is its turn.
void Scheduler::check(const Job& job) const {
  const Request& request = job.request;
  validate(request.prefill);
  validate(request.decode);
  if (request.sampling) validate(*request.sampling);
  require(!request.prefill.budget.rigid_whole_prompt,
          "a policy that looks at the whole prompt (rigid whole-prompt) cannot be read in chunks "
          "between other requests");
  const int64_t page = engine_.kv_shape(request.prefill, 0).layout.bytes();
  require(page <= pool_.page_bytes(),
          "the policy's pages take {} bytes, the server's have {}; start it with this policy", page,
          pool_.page_bytes());
  require(!request.tokens.empty(), "the prompt is empty; give some text");
  const int32_t vocab_size = static_cast<int32_t>(engine_.model->config().vocab_size);
  for (const int32_t token : request.tokens)
    require(token >= 0 && token < vocab_size, "token id {} is not in the vocabulary (0 to {})",
            token, vocab_size - 1);
  for (const auto& [token, bias] : job.options.logit_bias)
    require(token >= 0 && token < vocab_size,
            "logit_bias: token id {} is not in the vocabulary (0 to {})", token, vocab_size - 1);
  for (const int32_t token : job.options.stop_tokens)
    require(token >= 0 && token < vocab_size,
            "stop_token_ids: id {} is not in the vocabulary (0 to {})", token, vocab_size - 1);

  const int64_t context = engine_.model->config().max_positions;
  const auto n_prompt = static_cast<int64_t>(request.tokens.size());
  if (n_prompt + (request.max_tokens > 0 ? 1 : 0) > context) {
    Refusal refusal(Refusal::Kind::kTooLong);
    refusal.n_prompt = n_prompt;
    refusal.n_answer = std::max<int64_t>(1, request.max_tokens);
    refusal.n_context = context;
    throw refusal;
  }
  if (const int64_t bytes = planned_bytes(request); bytes > options_.kv_bytes) {
    Refusal refusal(Refusal::Kind::kTooLarge);
    refusal.n_prompt = n_prompt;
    refusal.n_answer = request.max_tokens;
    refusal.bytes = bytes;
    refusal.bytes_max = options_.kv_bytes;
    throw refusal;
  }
}

void Scheduler::submit(Job job) {
  std::vector<Job> jobs;
  jobs.push_back(std::move(job));
  submit(std::move(jobs));
}

void Scheduler::submit(std::vector<Job> jobs, const std::function<void()>& accepted) {
  Actives taken;
  int64_t n_tokens = 0;
  for (Job& job : jobs) {
    check(job);
    n_tokens += std::ssize(job.request.tokens);
    Active& active = taken.emplace_back(std::move(job));
    active.bytes = planned_bytes(active.job.request);
  }
  const std::lock_guard lock(mutex_);
  if (draining_) throw Refusal(Refusal::Kind::kDraining);
  // An idle server takes any one request.
  const bool idle = waiting_.empty() && n_active_ < options_.max_sequences;
  const int64_t n_waiting = std::ssize(waiting_) + std::ssize(taken);
  const int64_t n_waiting_tokens = waiting_tokens_ + n_tokens;
  if (!idle &&
      (n_waiting > options_.max_waiting || n_waiting_tokens > options_.max_waiting_tokens)) {
    const double rate = stats_.read_tps > 0 ? stats_.read_tps : 1000;
    Refusal refusal(Refusal::Kind::kBusy);
    refusal.n_waiting = std::ssize(waiting_);
    refusal.n_waiting_max = options_.max_waiting;
    refusal.n_tokens = waiting_tokens_;
    refusal.n_tokens_max = options_.max_waiting_tokens;
    refusal.retry_after_s =
        static_cast<int>(std::clamp(std::ceil(double(waiting_tokens_) / rate), 1.0, 600.0));
    throw refusal;
  }
  if (accepted) accepted();
  waiting_.splice(waiting_.end(), taken);
  waiting_tokens_ += n_tokens;
  changed_.notify_all();
}

void Scheduler::drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

bool Scheduler::draining() const {
  const std::lock_guard lock(mutex_);
  return draining_;
}

void Scheduler::cancel_all() {
  const std::lock_guard lock(mutex_);
  cancel_all_ = true;
}

bool Scheduler::wait_idle(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [&] { return waiting_.empty() && n_active_ == 0; });
}

SchedulerStats Scheduler::stats() const {
  const std::lock_guard lock(mutex_);
  SchedulerStats stats = stats_;
  stats.n_waiting = static_cast<int64_t>(waiting_.size());
  stats.n_waiting_tokens = waiting_tokens_;
  return stats;
}

void Scheduler::run(const std::stop_token& stop) {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return !waiting_.empty() || n_active_ > 0; })) return;
    }
    const std::lock_guard engine_lock(engine_.mutex);
    try {
      step();
    } catch (...) {
      return give_up(std::current_exception());
    }
  }
}

void Scheduler::give_up(const std::exception_ptr& why) noexcept {
  Actives waiting;
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
    waiting.swap(waiting_);
    waiting_tokens_ = 0;
  }
  for (Active& active : waiting) {
    active.error = why;
    tell(active.job.on_end, active.outcome());
  }
  while (!active_.empty()) {
    active_.front().sequence->fail(why);
    end(active_.begin());
  }
  publish();
}

void Scheduler::step() {
  end_cancelled();
  admit();
  decide();
  const auto begin = Clock::now();
  leader_.execute(batch_, plan_);
  if (plan_.read.sequence != nullptr && batch_.mid_chunk() == nullptr) {
    const Sequence& sequence = *plan_.read.sequence;
    const double n_tokens = double(sequence.n_read() - sequence.n_cached() - n_computed_);
    const double tps = n_tokens * 1000 / std::max(1e-3, ms_between(chunk_begun_, Clock::now()));
    if (n_tokens > 0) read_tps_ = read_tps_ == 0 ? tps : 0.9 * read_tps_ + 0.1 * tps;
    chunk_ended_ = true;
    active_.splice(active_.end(), active_, std::exchange(reader_, active_.end()));
  }
  for (auto it = active_.begin(); it != active_.end();) {
    const auto next = std::next(it);
    deliver(*it);
    if (it->sequence->finished()) end(it);
    it = next;
  }
  if (wrote_) {
    const auto now = Clock::now();
    next_write_ = now + std::max<Clock::duration>(options_.step_interval, now - begin);
  }
  publish();
}

void Scheduler::end_cancelled() {
  Actives gone;
  bool all = false;
  {
    const std::lock_guard lock(mutex_);
    all = cancel_all_;
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      const auto next = std::next(it);
      if (all || it->over()) {
        waiting_tokens_ -= std::ssize(it->job.request.tokens);
        gone.splice(gone.end(), waiting_, it);
      }
      it = next;
    }
  }
  for (Active& waiting : gone) tell(waiting.job.on_end, waiting.outcome());
  for (auto it = active_.begin(); it != active_.end();) {
    const auto next = std::next(it);
    if (all || it->over()) {
      it->sequence->cancel();
      end(it);
    }
    it = next;
  }
}

// Strictly in order: a large request that waits for memory is not overtaken for ever. What is
// admitted is read next.
void Scheduler::admit() {
  const auto others = active_.begin();
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (waiting_.empty() || n_active_ >= options_.max_sequences) return;
      const Active& next = waiting_.front();
      if (stats_.kv_bytes_planned + next.bytes > options_.kv_bytes) return;
      waiting_tokens_ -= std::ssize(next.job.request.tokens);
      stats_.kv_bytes_planned += next.bytes;
      ++n_active_;
      active_.splice(others, waiting_, waiting_.begin());
    }
    const auto it = std::prev(others);
    it->started = Clock::now();
    try {
      const Request& request = it->job.request;
      it->context.emplace(engine_, pool_, &prefixes_, room_for(request, engine_));
      it->sequence.emplace(engine_, *it->context, request, it->job.options);
      leader_.begin(*it->sequence, request, it->job.options);
    } catch (...) {
      it->sequence.reset();
      it->error = std::current_exception();
      end(it);
    }
  }
}

// What the next step does: all answers write, or a prompt is read.
void Scheduler::decide() {
  plan_.compress.clear();
  plan_.write.clear();
  plan_.read.followers.clear();
  plan_.read.sequence = nullptr;
  const bool begins = batch_.mid_chunk() == nullptr;
  if (begins) reader_ = next_to_read();
  const bool reads = reader_ != active_.end();
  const bool writes =
      std::ranges::any_of(active_, [](const Active& a) { return a.sequence->writing(); });
  wrote_ = writes && (!reads || (!wrote_ && (chunk_ended_ || Clock::now() >= next_write_)));
  if (wrote_) {
    chunk_ended_ = false;
    for (Active& active : active_) {
      if (!active.sequence->writing()) continue;
      plan_.write.push_back(&*active.sequence);
      if (active.sequence->compression_due()) plan_.compress.push_back(&*active.sequence);
    }
  } else if (reads) {
    Sequence& sequence = *reader_->sequence;
    if (begins) {
      chunk_begun_ = Clock::now();
      n_computed_ = sequence.n_read() - sequence.n_cached();
    }
    find_followers(*reader_);
    plan_.read.sequence = &sequence;
    plan_.read.max_rows = writes ? 1 : INT64_MAX;
    plan_.read.n_layers = writes ? 1 : INT64_MAX;  // then the clock is looked at again
  }
}

Scheduler::Actives::iterator Scheduler::next_to_read() {
  return std::ranges::find_if(
      active_, [](const Active& a) { return a.sequence->reading() && a.leader == nullptr; });
}

void Scheduler::find_followers(const Active& leader) {
  for (Active& active : active_) {
    Sequence& sequence = *active.sequence;
    if (&active == &leader || sequence.begun() || sequence.finished()) continue;
    if (active.leader == nullptr && active.can_follow(leader)) active.leader = &leader;
    if (active.leader == &leader) plan_.read.followers.push_back(&sequence);
  }
}

void Scheduler::deliver(Active& active) noexcept {
  Sequence& sequence = *active.sequence;
  const Job& job = active.job;
  try {
    const int64_t n_read = sequence.n_read();
    if (batch_.mid_chunk() != &sequence && n_read != std::exchange(active.n_read, n_read)) {
      if (n_read == sequence.n_prompt() && !job.options.score_prompt) {
        const std::lock_guard lock(mutex_);
        stats_.prefix_queries += n_read;
        stats_.prefix_hits += sequence.n_cached();
        stats_.prefix_host_hits += sequence.n_host();
        stats_.prefix_loaded += sequence.n_loaded();
      }
      if (job.on_prefill)
        job.on_prefill(n_read, sequence.n_prompt(), sequence.n_cached(),
                       ms_between(*active.started, Clock::now()));
    }
    Delta delta = sequence.take_delta();
    if (job.on_delta &&
        (delta.n_tokens > 0 || !delta.text.empty() || !delta.prompt_reports.empty()))
      job.on_delta(std::move(delta));
  } catch (...) {
    sequence.fail(std::current_exception());
  }
}

void Scheduler::end(Actives::iterator it) noexcept {
  if (it->sequence) {
    deliver(*it);
    batch_.drop(*it->sequence);
    leader_.end(*it->sequence);
  }
  if (reader_ == it) reader_ = active_.end();
  for (Active& other : active_)
    if (other.leader == &*it) other.leader = nullptr;
  Outcome outcome = it->outcome();
  const auto on_end = std::move(it->job.on_end);
  const int64_t bytes = it->bytes;
  active_.erase(it);  // memory is given back before anybody hears of it
  {
    const std::lock_guard lock(mutex_);
    --n_active_;
    stats_.kv_bytes_planned -= bytes;
    stats_.kv_bytes_used = pool_.bytes_in_use();
    stats_.prefix_bytes = prefixes_.bytes();
    stats_.prefix_host_bytes = prefixes_.host_bytes();
  }
  tell(on_end, std::move(outcome));
}

void Scheduler::publish() {
  const std::lock_guard lock(mutex_);
  stats_.n_reading =
      std::ranges::count_if(active_, [](const Active& a) { return a.sequence->reading(); });
  stats_.n_writing = static_cast<int64_t>(active_.size()) - stats_.n_reading;
  stats_.kv_bytes_used = pool_.bytes_in_use();
  stats_.prefix_bytes = prefixes_.bytes();
  stats_.prefix_host_bytes = prefixes_.host_bytes();
  if (store_) stats_.prefix_disk_bytes = store_->bytes();
  stats_.read_tps = read_tps_;
  if (wrote_) {
    ++stats_.n_steps;
    stats_.n_step_tokens += std::ssize(plan_.write);
  }
  if (waiting_.empty() && n_active_ == 0) changed_.notify_all();
}

}  // namespace ei
