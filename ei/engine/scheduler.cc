#include "ei/engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "ei/base/fail.h"
#include "ei/engine/memory_plan.h"

namespace ei {
namespace {

double ms_between(std::chrono::steady_clock::time_point from,
                  std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

int64_t mib(int64_t bytes) { return (bytes + (1 << 20) - 1) >> 20; }

SchedulerOptions with_defaults(SchedulerOptions options, const Engine::Impl& engine) {
  validate(options.prefill);
  require(!options.prefill.budget.rigid_whole_prompt,
          "a policy that looks at the whole prompt (rigid whole-prompt) cannot be read in chunks "
          "between other requests");
  require(options.max_sequences >= 1, "max-sequences is {}, expected 1 or more",
          options.max_sequences);
  const int64_t free = engine.backend->available_bytes();
  if (options.kv_bytes == 0) options.kv_bytes = free / 2;
  if (options.prefix_bytes < 0) options.prefix_bytes = free / 4;
  return options;
}

int64_t chunk_rows(const SchedulerOptions& options, const Engine::Impl& engine) {
  const int64_t segment = options.prefill.segment;
  return (engine.options.chunk + segment - 1) / segment * segment;
}

// With room for key bounds, whether or not the server's own policy wants them: requests may.
int64_t page_bytes(const SchedulerOptions& options, const Engine::Impl& engine) {
  PageLayout layout = engine.kv_shape(options.prefill, 0).layout;
  layout.block = options.prefill.block;
  return layout.bytes();
}

}  // namespace

struct Scheduler::Active {
  Job job;
  int64_t bytes = 0;
  Clock::time_point since, started;
  std::unique_ptr<Context> context;
  std::unique_ptr<Sequence> sequence;
};

Scheduler::Scheduler(Engine& engine, const SchedulerOptions& options)
    : engine_(engine.impl()),
      options_(with_defaults(options, engine_)),
      pool_(*engine_.backend, page_bytes(options_, engine_)),
      prefixes_(*engine_.backend, options_.prefix_bytes),
      act_(*engine_.backend, engine_.model->config(), chunk_rows(options_, engine_),
           Sequence::kScoreRows),
      step_act_(*engine_.backend, engine_.model->config(), options_.max_sequences,
                options_.max_sequences),
      decoder_(*engine_.backend, *engine_.model, options_.max_sequences) {
  stats_.kv_bytes_max = options_.kv_bytes;
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

Scheduler::~Scheduler() {
  cancel_all();
  drain();
  thread_.request_stop();
}

int64_t Scheduler::planned_bytes(const Request& request) const {
  const auto n_prompt = static_cast<int64_t>(request.tokens.size());
  const int64_t n_total =
      std::min(n_prompt + request.max_tokens, engine_.model->config().max_positions);
  return plan_memory(engine_, request.prefill, request.decode,
                     engine_.kv_shape(request.prefill, n_total), pool_.page_bytes(), n_prompt,
                     n_total)
      .sequence();
}

// Everything that can be known of a request before it is its turn.
void Scheduler::check(const Job& job) const {
  const Request& request = job.request;
  validate(request.prefill);
  validate(request.decode);
  if (request.sampling) validate(*request.sampling);
  require(request.prefill.segment == options_.prefill.segment &&
              request.prefill.block == options_.prefill.block &&
              !request.prefill.budget.rigid_whole_prompt,
          "segment, block and whole-prompt rules are the server's and not a request's");
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
  const int64_t n_answer = std::max<int64_t>(1, request.max_tokens);
  if (n_prompt + (request.max_tokens > 0 ? 1 : 0) > context) {
    Refusal refusal(
        Refusal::Kind::kTooLong,
        fmt::format("This model's maximum context length is {} tokens. However, your prompt "
                    "contains {} tokens and asks for {} of output. Please reduce the length of "
                    "the prompt.",
                    context, n_prompt, n_answer));
    refusal.n_prompt = n_prompt;
    refusal.n_context = context;
    throw refusal;
  }
  const int64_t bytes = planned_bytes(request);
  if (bytes > options_.kv_bytes)
    throw Refusal(
        Refusal::Kind::kTooLarge,
        fmt::format("The KV cache of {} prompt tokens and {} of output needs {} MiB; this "
                    "server has {} MiB for it. Shorten the prompt, lower max_tokens, or "
                    "start the server with a larger --kv-memory.",
                    n_prompt, request.max_tokens, mib(bytes), mib(options_.kv_bytes)));
}

void Scheduler::submit(Job job) {
  std::vector<Job> jobs;
  jobs.push_back(std::move(job));
  submit(std::move(jobs));
}

void Scheduler::submit(std::vector<Job> jobs, const std::function<void()>& accepted) {
  int64_t n_tokens = 0;
  for (const Job& job : jobs) {
    check(job);
    n_tokens += static_cast<int64_t>(job.request.tokens.size());
  }
  const std::lock_guard lock(mutex_);
  if (draining_) throw Refusal(Refusal::Kind::kDraining, "The server is shutting down.");
  // An idle server takes any one request.
  const bool idle = waiting_.empty() && n_active_ < options_.max_sequences;
  const int64_t n_waiting = static_cast<int64_t>(waiting_.size() + jobs.size());
  const int64_t n_waiting_tokens = waiting_tokens_ + n_tokens;
  if (!idle &&
      (n_waiting > options_.max_waiting || n_waiting_tokens > options_.max_waiting_tokens)) {
    const double rate = stats_.read_tps > 0 ? stats_.read_tps : 1000;
    const int retry_s =
        static_cast<int>(std::clamp(std::ceil(double(waiting_tokens_) / rate), 1.0, 600.0));
    throw Refusal(
        Refusal::Kind::kBusy,
        fmt::format("The server is busy: {} requests with {} prompt tokens are waiting, at "
                    "most {} with {} may. Try again in {} s.",
                    waiting_.size(), waiting_tokens_, options_.max_waiting,
                    options_.max_waiting_tokens, retry_s),
        retry_s);
  }
  if (accepted) accepted();
  const auto now = Clock::now();
  for (Job& job : jobs) {
    const int64_t bytes = planned_bytes(job.request);
    waiting_.push_back({std::move(job), now, bytes});
  }
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
    end_cancelled();
    admit();
    read_next();
    write_all();
    publish();
  }
}

void Scheduler::end_cancelled() {
  std::deque<Waiting> gone;
  bool all = false;
  {
    const std::lock_guard lock(mutex_);
    all = cancel_all_;
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      if (!all && !over(it->job)) {
        ++it;
        continue;
      }
      waiting_tokens_ -= static_cast<int64_t>(it->job.request.tokens.size());
      gone.push_back(std::move(*it));
      it = waiting_.erase(it);
    }
  }
  for (Waiting& waiting : gone) {
    Outcome outcome;
    outcome.generation.finish_reason = FinishReason::kCancelled;
    outcome.queue_ms = ms_between(waiting.since, Clock::now());
    waiting.job.on_end(std::move(outcome));
  }
  for (auto it = active_.begin(); it != active_.end();) {
    const auto next = std::next(it);
    if (all || over(it->job)) {
      it->sequence->cancel();
      end(it);
    }
    it = next;
  }
}

// Strictly in order: a large request that waits for memory is not overtaken for ever.
void Scheduler::admit() {
  while (true) {
    Waiting next;
    {
      const std::lock_guard lock(mutex_);
      if (waiting_.empty() || n_active_ >= options_.max_sequences) return;
      if (stats_.kv_bytes_planned + waiting_.front().bytes > options_.kv_bytes) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_tokens_ -= static_cast<int64_t>(next.job.request.tokens.size());
      stats_.kv_bytes_planned += next.bytes;
      ++n_active_;
    }
    Active& active = active_.emplace_front();  // its first chunk comes next
    active.job = std::move(next.job);
    active.bytes = next.bytes;
    active.since = next.since;
    active.started = Clock::now();
    try {
      const Request& request = active.job.request;
      const auto n_prompt = static_cast<int64_t>(request.tokens.size());
      const int64_t n_total = std::min(n_prompt + std::max<int64_t>(0, request.max_tokens),
                                       engine_.model->config().max_positions);
      active.context = std::make_unique<Context>(engine_, pool_, &prefixes_, n_total);
      active.sequence =
          std::make_unique<Sequence>(engine_, *active.context, request, active.job.options);
      if (!active.job.options.score_prompt) {
        const std::lock_guard lock(mutex_);
        stats_.prefix_queries += n_prompt;
        stats_.prefix_hits += active.sequence->n_cached();
      }
    } catch (const std::exception& error) {
      end(active_.begin(), error.what());
    }
  }
}

// A chunk of the prompt whose turn it is.
void Scheduler::read_next() {
  const auto it = std::ranges::find_if(active_, [](Active& a) { return a.sequence->reading(); });
  if (it == active_.end()) return;
  const bool others_write =
      std::ranges::any_of(active_, [](Active& a) { return a.sequence->writing(); });
  const int64_t max_rows = others_write ? options_.prefill.segment : act_.max_rows();
  try {
    Sequence& sequence = *it->sequence;
    const auto begin = Clock::now();
    const int64_t at = sequence.n_read();
    sequence.read_chunk(act_, max_rows, [&] {
      if (Clock::now() >= next_step_) write_all();
    });
    const auto now = Clock::now();
    const double tps =
        double(sequence.n_read() - at) * 1000 / std::max(1e-3, ms_between(begin, now));
    read_tps_ = read_tps_ == 0 ? tps : 0.9 * read_tps_ + 0.1 * tps;
    if (it->job.on_prefill)
      it->job.on_prefill(std::min(sequence.n_read(), sequence.n_prompt()), sequence.n_prompt(),
                         sequence.n_cached(), ms_between(it->started, now));
    deliver(*it);
    if (sequence.finished()) return end(it);
    active_.splice(active_.end(), active_, it);
  } catch (const std::exception& error) {
    end(it, error.what());
  }
}

// One token of every answer.
void Scheduler::write_all() {
  std::vector<Running> running;
  std::vector<std::list<Active>::iterator> batch;
  for (auto it = active_.begin(); it != active_.end();) {
    const auto next = std::next(it);
    if (it->sequence->writing() && over(it->job)) {
      it->sequence->cancel();
      end(it);
    } else if (it->sequence->writing()) {
      try {
        running.push_back(it->sequence->running());
        batch.push_back(it);
      } catch (const std::exception& error) {
        end(it, error.what());  // no memory for one is no reason to stop the others
      }
    }
    it = next;
  }
  if (batch.empty()) return;
  const auto begin = Clock::now();
  try {
    const Act logits = decoder_.step(step_act_, running);
    for (size_t i = 0; i < batch.size(); ++i)
      batch[i]->sequence->accept(logits.slice(static_cast<int64_t>(i), 1));
  } catch (const std::exception& error) {
    for (const auto it : batch) end(it, error.what());
    return;
  }
  for (const auto it : batch) {
    deliver(*it);
    if (it->sequence->finished()) end(it);
  }
  const auto now = Clock::now();
  next_step_ = now + std::max<Clock::duration>(options_.step_interval, now - begin);
  const std::lock_guard lock(mutex_);
  ++stats_.n_steps;
  stats_.n_step_tokens += static_cast<int64_t>(batch.size());
}

void Scheduler::deliver(Active& active) {
  Delta delta = active.sequence->take_delta();
  if (active.job.on_delta &&
      (delta.n_tokens > 0 || !delta.text.empty() || !delta.prompt_reports.empty()))
    active.job.on_delta(std::move(delta));
}

void Scheduler::end(std::list<Active>::iterator it, std::optional<std::string> error) {
  Outcome outcome;
  outcome.queue_ms = ms_between(it->since, it->started);
  if (it->context) outcome.lost_prefix = it->context->lost_prefix();
  if (!error && it->sequence) {
    deliver(*it);
    outcome.generation = it->sequence->result();
  }
  outcome.error = std::move(error);
  const auto on_end = std::move(it->job.on_end);
  const int64_t bytes = it->bytes;
  active_.erase(it);
  {
    const std::lock_guard lock(mutex_);
    --n_active_;
    stats_.kv_bytes_planned -= bytes;
  }
  on_end(std::move(outcome));
}

void Scheduler::publish() {
  const std::lock_guard lock(mutex_);
  stats_.n_reading =
      std::ranges::count_if(active_, [](Active& a) { return a.sequence->reading(); });
  stats_.n_writing = static_cast<int64_t>(active_.size()) - stats_.n_reading;
  stats_.kv_bytes_used = pool_.bytes_in_use();
  stats_.prefix_bytes = prefixes_.bytes();
  stats_.read_tps = read_tps_;
  if (waiting_.empty() && n_active_ == 0) changed_.notify_all();
}

}  // namespace ei
